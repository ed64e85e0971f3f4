"""Finding, fetching and verifying weight files, against a local server; LPIPS weights out of them."""

import dataclasses
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from voken_common.checkpoints import downloads as weights
from voken_common.checkpoints import lpips_weights
from voken_common.checkpoints.downloads import WEIGHTS, WeightsError, resolve

GOLDEN = Path(__file__).parents[2] / "golden"
CONTENT = b"weights " * 5000


class Server(ThreadingHTTPServer):
    """Serves `files` by path; a path in `cut` promises more than it sends."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.requests = {}, set(), []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/mirror"


class Handler(BaseHTTPRequestHandler):
    """One GET."""

    def do_GET(self):
        self.server.requests.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + (1000 if self.path in self.server.cut else 0)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("VOKEN_WEIGHTS_URL", server.url)
        monkeypatch.setenv("VOKEN_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()
        thread.join()


def publish(server, monkeypatch, name, content):
    """Make `content` the right content of a known file and serve it."""
    weight = dataclasses.replace(WEIGHTS[name], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(WEIGHTS, name, weight)
    server.files[f"/mirror/{weight.relative}"] = content
    return weight


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_downloads_once_then_uses_the_cache(server, monkeypatch, tmp_path, capsys):
    publish(server, monkeypatch, "lpips_vgg", CONTENT)
    path = resolve("lpips_vgg")
    assert path == tmp_path / "cache" / "weights" / "lpips_v0.1" / "vgg.pth"
    assert path.read_bytes() == CONTENT
    assert "vgg.pth" in capsys.readouterr().err
    assert resolve("lpips_vgg", progress=False) == path
    assert server.requests == ["/mirror/lpips_v0.1/vgg.pth"]
    assert files_under(tmp_path / "cache") == [path]
    other = resolve("lpips_vgg", cache_dir=tmp_path / "other", progress=False)
    assert other == tmp_path / "other" / "weights" / "lpips_v0.1" / "vgg.pth"
    assert capsys.readouterr().err == ""


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("VOKEN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / "voken"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / ".cache" / "voken"


def test_wrong_content_is_removed_and_reported(server, monkeypatch, tmp_path):
    weight = publish(server, monkeypatch, "vgg16", CONTENT)
    server.files[f"/mirror/{weight.relative}"] = b"an error page"
    found = hashlib.sha256(b"an error page").hexdigest()
    with pytest.raises(WeightsError, match=f"found sha256 {found} .13 bytes.*expected {weight.sha256}.*removed"):
        resolve("vgg16", progress=False)
    assert files_under(tmp_path) == []
    cached = tmp_path / "cache" / "weights" / weight.relative
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(b"damaged on disk")
    with pytest.raises(WeightsError, match=f"{cached} is not {weight.name}: found sha256 .*run again to download"):
        resolve("vgg16", progress=False)
    assert not cached.exists()


def test_a_cut_connection_leaves_nothing_behind(server, monkeypatch, tmp_path):
    weight = publish(server, monkeypatch, "vgg16", CONTENT)
    server.cut.add(f"/mirror/{weight.relative}")
    with pytest.raises(WeightsError, match=r"ended after 40000 of 41000 bytes"):
        resolve("vgg16", progress=False)
    assert files_under(tmp_path) == []
    server.cut.clear()
    assert resolve("vgg16", progress=False).read_bytes() == CONTENT


def test_missing_on_the_server_and_offline_say_what_to_do(server, monkeypatch, tmp_path):
    target = tmp_path / "cache" / "weights" / WEIGHTS["inception_fid"].relative
    advice = (
        "get pt_inception-2015-12-05-6726825d.pth from mseitzer/pytorch-fid on GitHub, release fid_weights, "
        f"{WEIGHTS['inception_fid'].url}, and put it at {target} (sha256 {WEIGHTS['inception_fid'].sha256})"
    )
    with pytest.raises(WeightsError, match="HTTP Error 404") as missing:
        resolve("inception_fid", progress=False)
    assert advice in str(missing.value)
    monkeypatch.setenv("VOKEN_WEIGHTS_URL", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="could not download") as offline:
        resolve("inception_fid", progress=False)
    assert advice in str(offline.value)


def test_files_without_an_address_have_to_be_brought(monkeypatch, tmp_path):
    monkeypatch.delenv("VOKEN_WEIGHTS_URL", raising=False)
    with pytest.raises(
        WeightsError, match=r"i3d_pretrained_400\.pt is not in the cache and has to be brought.*VideoGPT"
    ):
        resolve("i3d", cache_dir=tmp_path)
    own = tmp_path / "mine.pt"
    own.write_bytes(b"x")
    assert resolve(own) == own
    with pytest.raises(WeightsError, match=r"no weight file .*absent\.pt; expected an existing file or one of vgg16, "):
        resolve(tmp_path / "absent.pt")


def test_a_file_without_a_published_hash_is_refused_until_the_user_names_it(server, monkeypatch, tmp_path):
    monkeypatch.setitem(WEIGHTS, "i3d", dataclasses.replace(WEIGHTS["i3d"], sha256=None))
    found = hashlib.sha256(CONTENT).hexdigest()
    server.files[f"/mirror/{WEIGHTS['i3d'].relative}"] = CONTENT
    with pytest.raises(WeightsError, match="no sha256 is published for i3d_pretrained_400.pt.*i3d#sha256=HEX"):
        resolve("i3d", progress=False)
    assert server.requests == []
    with pytest.raises(WeightsError, match=f"found sha256 {found}"):
        resolve("i3d#sha256=" + "0" * 64, progress=False)
    assert files_under(tmp_path) == []
    path = resolve(f"i3d#sha256={found.upper()}", progress=False)
    assert path.read_bytes() == CONTENT
    with pytest.raises(WeightsError, match=f"nobody can tell.*i3d#sha256={found}"):
        resolve("i3d", progress=False)
    assert resolve("i3d", sha256=found, progress=False) == path
    with pytest.raises(WeightsError, match="another file"):
        resolve(f"{path}#sha256={'0' * 64}")
    assert resolve(f"{path}#sha256={found}") == path
    with pytest.raises(WeightsError, match="published with sha256 397923"):
        resolve("vgg16", sha256=found)


@pytest.mark.parametrize("length", ["-5", "many", "1e3", "٣", "9" * 30, str(weights.LARGEST + 1)])
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(length):
    with pytest.raises(WeightsError, match="http://x announces"):
        weights.content_length(length, "http://x")
    assert weights.content_length(None, "http://x") is None
    assert weights.content_length("12", "http://x") == 12


def test_a_download_without_an_end_is_cut_off(server, monkeypatch, tmp_path):
    publish(server, monkeypatch, "vgg16", CONTENT)
    monkeypatch.setattr(weights, "LARGEST", len(CONTENT) - 1)
    monkeypatch.setattr(weights, "content_length", lambda *_: None)
    with pytest.raises(WeightsError, match=f"sends more than {len(CONTENT) - 1} bytes"):
        resolve("vgg16", progress=False)
    assert files_under(tmp_path) == []


def test_an_unwritable_cache_is_reported(server, monkeypatch, tmp_path):
    publish(server, monkeypatch, "vgg16", CONTENT)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="could not write .*set VOKEN_CACHE"):
        resolve("vgg16", cache_dir=tmp_path / "file", progress=False)


def seeded(shapes):
    random = np.random.default_rng(0)
    return {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def published_files(net, state):
    """The two files of the projects: torchvision's network (with a classifier) and the heads."""
    features = {"classifier.6.bias": torch.zeros(1000)}
    heads = {}
    for key, array in state.items():
        if key.startswith("net."):
            features["features." + key.split(".", 2)[2]] = torch.from_numpy(array)
        elif key.startswith("lin"):
            heads[key] = torch.from_numpy(array)
    return features, heads


def test_lpips_names_are_those_of_the_reference():
    case = json.loads((GOLDEN / "lpips_vgg.json").read_text())
    assert {key: list(shape) for key, shape in lpips_weights.lpips_shapes("vgg").items()} == case["shapes"]


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_from_downloads_and_from_a_folder(server, monkeypatch, tmp_path, net):
    state = seeded(lpips_weights.lpips_shapes(net))
    state["scaling_layer.shift"] = np.float32([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    state["scaling_layer.scale"] = np.float32([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    for name, content in zip(({"vgg": "vgg16", "alex": "alexnet"}[net], f"lpips_{net}"), published_files(net, state)):
        file = tmp_path / WEIGHTS[name].name
        torch.save(content, file, _use_new_zipfile_serialization=False)
        publish(server, monkeypatch, name, file.read_bytes())
    for found in (
        lpips_weights.lpips_weights(net, "auto", progress=False),
        lpips_weights.lpips_weights(net, tmp_path),
        lpips_weights.lpips_weights(net, tmp_path / "cache" / "weights"),
    ):
        assert list(found) == list(state)
        for key, array in state.items():
            np.testing.assert_array_equal(found[key], array)


def test_lpips_from_a_published_checkpoint(tmp_path):
    state = seeded(lpips_weights.lpips_shapes("vgg"))
    whole = {lpips_weights.PREFIX + key: torch.from_numpy(array) for key, array in state.items()}
    torch.save({"epoch": 1, "path": tmp_path, "state_dict": {"encoder.w": torch.ones(1)} | whole}, tmp_path / "x.ckpt")
    found = lpips_weights.lpips_vgg_weights(tmp_path / "x.ckpt")
    np.testing.assert_array_equal(found["net.slice5.28.weight"], state["net.slice5.28.weight"])


def test_lpips_errors(tmp_path):
    with pytest.raises(WeightsError, match=r"no vgg16-397923af\.pth in .*torchvision.*sha256 397923af.*both files"):
        lpips_weights.lpips_vgg_weights(tmp_path)
    torch.save({"encoder.w": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"33 of 33 LPIPS vgg weights are missing.*found encoder\.w"):
        lpips_weights.lpips_vgg_weights(tmp_path / "x.pt")
    wrong = {key: torch.zeros(2) for key in lpips_weights.lpips_shapes("vgg")}
    torch.save(wrong, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"scaling_layer\.shift has shape \(2,\), expected \(1, 3, 1, 1\)"):
        lpips_weights.lpips_vgg_weights(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="not a torch checkpoint"):
        lpips_weights.lpips_vgg_weights(tmp_path / "x.pt")
