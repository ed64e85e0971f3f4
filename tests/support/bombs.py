"""Small files made to exhaust who reads them, each read in a process with limits: `python -m tests.support.bombs DIR`.

Prints one JSON object: name -> what the reader did, its seconds of processor time, and the bytes by which memory grew.
"""

import json
import os
import resource
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

MEMORY, SECONDS = 1 << 30, 20


def torch_file(path, data, storages=((b"0", bytes(16)),), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", data)
        for key, content in storages:
            archive.writestr(f"x/data/{key.decode()}", content)
    return path


def read_torch(path):
    from voken_common.checkpoints.torch_pickle import load

    load(path)


def pickle_of(body):
    return lambda folder: torch_file(folder / "x.pt", b"\x80\x02" + body + b".")


def tensor(shape, stride):
    """A tensor over four floats."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\4tQ"

    def ints(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + ints(shape) + ints(stride) + b"\x89NtR"


def inflated(folder):
    """A member of 256 MiB that deflates to 256 KB; nothing needs it."""
    path = folder / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N.")
        with archive.open("x/data/0", "w", force_zip64=True) as member:
            for _ in range(8):
                member.write(bytes(32 << 20))
    return path


def text_file(name, text):
    def write(folder):
        path = folder / name
        path.write_text(text)
        return path

    return write


def read_config(path):
    from voken_common.config.loading import load_any_config

    load_any_config(path)


def checksums(files):
    """A step whose `checksums.json` names other files."""

    def write(folder):
        import zlib

        content = {"format": 1, "files": files, "arrays": {}}
        own = zlib.crc32(json.dumps(content, sort_keys=True).encode())
        (folder / "checksums.json").write_text(json.dumps({**content, "crc32": own}))
        if "fifo" in files:
            os.mkfifo(folder / "fifo")
        return folder

    return write


def read_checksums(folder):
    from voken_common.checkpoints.checksums import problems

    found = problems(folder)
    assert found
    raise ValueError(found[0])


def tokens(**changes):
    info = {
        "grid": [4, 4],
        "vocabularies": [8],
        "tokenizer": {"name": "x", "reference": "y", "fingerprint": "a" * 64, "config": {}},
        "source": {},
        "samples": 10**15,
        "samples_per_shard": 1,
    }
    return text_file("tokens.json", json.dumps(info | changes))


def read_tokens(path):
    from voken_common.data.tokens.shards import TokenShardSource

    TokenShardSource(path.parent)


def image_list(target):
    def write(folder):
        if target == "fifo":
            os.mkfifo(folder / "fifo")
        (folder / "list.txt").write_text(f"{target}\n")
        return folder / "list.txt"

    return write


def read_list(path):
    from voken_common.data.sources.folder import ListFile

    source = ListFile(str(path))
    assert source.read(0)[0]


def read_meta(path):
    from voken_common.checkpoints.steps import Meta

    Meta.from_dict(json.loads(path.read_text()), str(path))


def network(**changes):
    from tests.support.tiny import TINY

    model = {**TINY["model"], **changes}
    return text_file("x.yaml", json.dumps({**TINY, "model": model}))


def build_manifest(path):
    from voken_common.config.loading import load_config

    load_config(path)


def nested_json(folder):
    array = {"__metadata__": {"arrays": "[" * 200_000}}
    data = json.dumps(array, separators=(",", ":")).encode()
    path = folder / "x.index"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    return path


def negative_index(folder):
    """An index that places an image before the beginning of its tar."""
    from voken_common.data.storage.array_file import write_arrays

    (folder / "0.tar").write_bytes(bytes(2048))
    columns = {
        "first": np.array([0, 1], np.int64),
        "start": np.array([-512], np.int64),
        "size": np.array([2**32 - 1], np.uint32),
        "header_crc": np.array([0], np.uint32),
        "name_bytes": np.frombuffer(b"a.png", np.uint8),
        "name_ends": np.array([5], np.int64),
        "tar_size": np.array([2048], np.int64),
        "tar_modified": np.array([0], np.int64),
        "tar_head_crc": np.array([0], np.uint32),
    }
    write_arrays(folder / "x.index", columns, {"version": 1, "location": str(folder), "tars": ["0.tar"]})
    return folder / "x.index"


def read_index(path):
    from voken_common.data.tar.index import TarIndex

    index = TarIndex(str(path))
    index.read(0)
    index.name(0)


def aliases(folder):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return text_file("x.yaml", "\n".join(levels) + "\n")(folder)


BOMBS = {
    "tuples nested": (pickle_of(b")" + b"\x85" * 300_000), read_torch),
    "tuples nested in a key": (pickle_of(b"}" + b")" + b"\x85" * 300_000 + b"Ns"), read_torch),
    "tuples nested in a persistent id": (pickle_of(b")" + b"\x85" * 300_000 + b"Q"), read_torch),
    "tuples doubled": (pickle_of(b")" + b"q\0h\0\x86" * 60), read_torch),
    "tuples doubled in a key": (pickle_of(b"}" + b")" + b"q\0h\0\x86" * 60 + b"Ns"), read_torch),
    "lists doubled": (
        pickle_of(b"]" + b"q\0]q\1(h\0h\0e" * 1 + b"".join(b"]q%c(h%ch%ce" % (n + 2, n + 1, n + 1) for n in range(60))),
        read_torch,
    ),
    "lists nested": (pickle_of(b"(" * 300_000 + b"l" * 300_000), read_torch),
    "a list in itself": (pickle_of(b"]q\0h\0a"), read_torch),
    "the memo far out": (pickle_of(b"Nr\xff\xff\xff\x0f"), read_torch),
    "digits": (pickle_of(b"I" + b"9" * 4_000_000 + b"\n"), read_torch),
    "a string of 2^60 bytes": (pickle_of(b"\x8d" + struct.pack("<Q", 2**60)), read_torch),
    "names without number": (pickle_of(b"".join(b"ca\nn%d\n0" % n for n in range(200_000)) + b"N"), read_torch),
    "sets copied": (
        pickle_of(
            b"]("
            + b"".join(b"J" + struct.pack("<i", n) for n in range(100_000))
            + b"eq\0c__builtin__\nset\nq\1]("
            + b"h\1h\0\x85R" * 3000
            + b"e"
        ),
        read_torch,
    ),
    "a deflated member": (inflated, read_torch),
    "a tensor that repeats": (
        pickle_of(tensor((2**40,), (0,))),
        read_torch,
    ),
    "aliases": (aliases, read_config),
    "digits in YAML": (text_file("x.yaml", "seed: " + "1" * 60_000), read_config),
    "digits and dots in YAML": (text_file("x.yaml", "seed: " + "1" * 60_000 + "x"), read_config),
    "YAML nested": (text_file("x.yaml", "a: " + "[" * 20_000), read_config),
    "a list as key": (text_file("x.yaml", "? [a, b]\n: 1\n"), read_config),
    "a megabyte of YAML": (text_file("x.yaml", "".join(f"a{n}: [1, 2, 3]\n" for n in range(80_000))), read_config),
    "10^9 blocks": (network(residual_blocks=10**9), build_manifest),
    "10^9 levels": (network(channel_multipliers=[1] * 100_000), build_manifest),
    "checksums of /dev/zero": (checksums({"/dev/zero": {"size": 0, "crc32": 1}}), read_checksums),
    "checksums of a pipe": (checksums({"fifo": {"size": 0, "crc32": 1}}), read_checksums),
    "checksums above": (checksums({"../../../../dev/zero": {"size": 0, "crc32": 1}}), read_checksums),
    "10^15 shards": (tokens(), read_tokens),
    "10^15 shards, finished": (tokens(complete=True), read_tokens),
    "a list that names /dev/zero": (image_list("/dev/zero"), read_list),
    "a list that names a pipe": (image_list("fifo"), read_list),
    "JSON nested": (nested_json, read_index),
    "an offset below zero": (negative_index, read_index),
    "a step of infinity": (
        text_file("meta.json", '{"layout": 1, "config": {}, "metrics": {}, "step": Infinity}'),
        read_meta,
    ),
}


def child(name, folder):
    """In a process of its own: the outcome on standard output."""
    write, read = BOMBS[name]
    path = write(folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    baseline = used.ru_maxrss
    begin = used.ru_utime + used.ru_stime
    signal.alarm(SECONDS)
    try:
        read(path)
        outcome = "read"
    except (ValueError, OSError) as error:
        outcome = f"refused: {type(error).__name__}: {error}"[:2000]
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"[:300]
    used = resource.getrusage(resource.RUSAGE_SELF)
    growth = (used.ru_maxrss - baseline) * 1024
    return {"outcome": outcome, "seconds": used.ru_utime + used.ru_stime - begin, "growth": growth}


def isolated(name, folder):
    """`child` in a fork, whatever becomes of it."""
    folder.mkdir(parents=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY + (1 << 28),) * 2)
        os.write(writing, json.dumps(child(name, folder)).encode())
        os._exit(0)
    os.close(writing)
    begin = time.monotonic()
    with os.fdopen(reading, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    if not text:
        return {"outcome": f"ended by signal {os.WTERMSIG(status)}", "seconds": time.monotonic() - begin, "growth": 0}
    return json.loads(text)


def main(root):
    import voken_common.checkpoints.checksums
    import voken_common.checkpoints.torch_pickle
    import voken_common.data.sources.folder
    import voken_common.data.tar.index
    import voken_common.data.tokens.folder  # noqa: F401

    sys.setrecursionlimit(1000)
    print(json.dumps({name: isolated(name, root / str(n)) for n, name in enumerate(BOMBS)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
