"""A server on this machine that speaks the hub's protocol to its real client."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Repositories in memory.

    Attributes:
        files: {repository: {path: content}}.
        faults: {(repository, path): one of "wrong hash", "truncated", "gated", "private", "hanging", "error"}.
        requests: (method, path) of all requests so far.
        pushed: {repository: {path: content}} of commits.
    """

    def __init__(self):
        self.files, self.faults, self.requests, self.pushed = {}, {}, [], {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, repository, path, content, fault=None):
        """Serve a file."""
        self.files.setdefault(repository, {})[path] = content
        if fault:
            self.faults[repository, path] = fault

    def downloads(self):
        """Paths of files whose content was asked for."""
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            """Be quiet."""

        def do_HEAD(self):
            self._route(head=True)

        def do_GET(self):
            self._route(head=False)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append(("POST", self.path))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                hub.files.setdefault(name, {})
                self._json({"url": f"{hub.address}/{name}"})
            elif self.path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self._json({"files": modes})
            elif "/commit/" in self.path:
                repository = self.path.split("/api/models/")[1].split("/commit/")[0]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.pushed.setdefault(repository, {})[line["value"]["path"]] = content
                        hub.add(repository, line["value"]["path"], content)
                self._json({"commitUrl": f"{hub.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self._fail(404, "EntryNotFound")

        def _route(self, head):
            path = self.path.split("?")[0]
            hub.requests.append((self.command, path))
            if path == "/api/whoami-v2":
                self._json({"name": "somebody", "type": "user", "orgs": []})
            elif path.startswith("/api/models/"):
                self._about(path.removeprefix("/api/models/").split("/"))
            elif "/resolve/" in path:
                repository, _, rest = path[1:].partition("/resolve/")
                revision, _, file = rest.partition("/")
                self._file(repository, revision, file, head)
            else:
                self._fail(404, "RepoNotFound")

        def _about(self, parts):
            repository = "/".join(parts[:2])
            files = hub.files.get(repository)
            if files is None:
                self._fail(401, "RepoNotFound")
            elif len(parts) > 2 and parts[2] == "tree":
                kinds = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self._json(kinds)
            else:
                about = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self._json(about)

        def _file(self, repository, revision, file, head):
            fault = hub.faults.get((repository, file))
            if fault == "hanging":
                threading.Event().wait(5)
            if fault in ("gated", "private"):
                self._fail(403 if fault == "gated" else 401, "GatedRepo" if fault == "gated" else "RepoNotFound")
                return
            if fault == "error":
                self._fail(503, None)
                return
            if repository not in hub.files:
                self._fail(401, "RepoNotFound")
                return
            if revision not in ("main", "v1", COMMIT):
                self._fail(404, "RevisionNotFound")
                return
            if file not in hub.files[repository]:
                self._fail(404, "EntryNotFound", {"X-Repo-Commit": COMMIT})
                return
            content = hub.files[repository][file]
            digest = hashlib.sha256(content).hexdigest()
            sent = b"\xff" + content[1:] if fault == "wrong hash" else content
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", str(len(content)))
            if fault == "truncated":
                self.send_header("Connection", "close")
            self.end_headers()
            if not head:
                self.wfile.write(sent[: len(sent) // 2] if fault == "truncated" else sent)
                self.close_connection = fault == "truncated"

        def _json(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _fail(self, status, code, headers=None):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
