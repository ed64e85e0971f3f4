"""Mutate files that voken reads, thousands of times, and watch its readers: `python scripts/fuzz_readers.py`.

Every kind of file is read in a process of its own. A kind passes where no case ends the interpreter, takes longer than
5 seconds, lets memory grow by more than 512 MiB, or raises anything but an error for the user. Prints a table and a
JSON line; exit status 1 where a kind fails. `--kinds yaml --first 1234 --count 1` repeats one case.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_SECONDS = 5.0
LARGEST_GROWTH = 512 << 20
_OPCODES = bytes(range(0x28, 0x7E)) + bytes(range(0x80, 0x99))

Case = Callable[[random.Random], None]
"""Makes one mutated file and reads it."""


def mutated(draw: random.Random, content: bytes, extra: bytes = b"") -> bytes:
    """Content with bytes changed, dropped, repeated, put in or cut off, in one or more places.

    Args:
        draw: decides.
        content: of the file.
        extra: bytes that are put in more often than others.
    """
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        begin = draw.randrange(len(data))
        kind = draw.randrange(6)
        if kind == 0:
            data[begin] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[begin] = draw.choice((0, 0xFF, 0x7F, 0x80, draw.randrange(256)))
        elif kind == 2:
            del data[begin : begin + draw.randrange(1, 50)]
        elif kind == 3:
            data[begin:begin] = data[begin : begin + draw.randrange(1, 200)] * draw.choice((1, 1, 1, 50))
        elif kind == 4 and extra:
            data[begin:begin] = bytes(draw.choice(extra) for _ in range(draw.randrange(1, 40)))
        elif draw.randrange(4) == 0:
            del data[begin:]
    return bytes(data)


def pickles(folder: Path) -> Case:
    """Torch files of both layouts; only the pickle of the zip layout is changed, so that most are read."""
    from voken_common.checkpoints.torch_pickle import load

    file = folder / "x.pt"
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\4tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\2K\2\x86K\2K\1\x86\x89Ntq\1R"
    whole = b"\x80\2}q\0(X\1\0\0\0w" + tensor + b"X\1\0\0\0m](K\1K\2\x86h\0NG" + bytes(8) + b"eX\1\0\0\0n)u."
    plain = pickle.dumps({"a": [(1, 2), {"b": "c"}], "d": 1.5, "e": {1, 2}}, 4)

    def case(draw: random.Random) -> None:
        data = mutated(draw, draw.choice((whole, plain)), _OPCODES)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", data)
            archive.writestr("x/data/0", bytes(16))
        if draw.randrange(5) == 0:
            file.write_bytes(mutated(draw, file.read_bytes()))
        if draw.randrange(5) == 0:
            file.write_bytes(data)
        load(file, unknown=draw.choice(("refuse", "inert")))

    return case


def safetensors(folder: Path) -> Case:
    """Files with weights, a configuration and checksums."""
    from voken_common.checkpoints.conversion.safetensors_file import read_safetensors, write_safetensors
    from voken_common.checkpoints.steps import Meta
    from voken_common.config.loading import load_config

    file, stream = folder / "x.safetensors", io.BytesIO()
    config = load_config(Path(__file__).parents[1] / "configs" / "quickstart_lfq.yaml")
    write_safetensors(
        stream, {"w": np.ones((3, 2), np.float32), "b": np.zeros(5, np.float32)}, Meta(config, 1, {}), "raw"
    )

    def case(draw: random.Random) -> None:
        file.write_bytes(mutated(draw, stream.getvalue(), b'[]{}",:0123456789'))
        read_safetensors(file, verify=draw.random() < 0.5)

    return case


def yaml(folder: Path) -> Case:
    """Configurations, with aliases put in."""
    from voken_common.config.loading import load_any_config, to_yaml

    file = folder / "x.yaml"
    texts = [
        to_yaml(load_any_config(path)).encode() for path in Path(__file__).parents[1].glob("configs/*/*_256*.yaml")
    ]

    def case(draw: random.Random) -> None:
        file.write_bytes(mutated(draw, draw.choice(texts), b"&a *a<>|[]{}:-?#\n 0129eE._!%"))
        load_any_config(file)

    return case


def metadata(folder: Path) -> Case:
    """JSON that steps, token folders and checksums consist of."""
    from voken_common.checkpoints.checksums import problems, write_checksums
    from voken_common.checkpoints.steps import Meta
    from voken_common.config.loading import load_config
    from voken_common.data.tokens.folder import read_info
    from voken_common.untrusted.json_text import loads

    (folder / "data").write_bytes(b"x" * 100)
    write_checksums(folder, {})
    sums = (folder / "checksums.json").read_bytes()
    config = load_config(Path(__file__).parents[1] / "configs" / "quickstart_lfq.yaml")
    meta = json.dumps(Meta(config, 1, {"l1": 1.0}).to_dict()).encode()
    tokens = json.dumps(
        {
            "grid": [4, 4],
            "vocabularies": [8],
            "tokenizer": {"name": "x", "reference": "y", "fingerprint": "a" * 64, "config": {}},
            "source": {},
            "samples": 10,
            "samples_per_shard": 5,
        }
    ).encode()

    def case(draw: random.Random) -> None:
        kind, extra = draw.randrange(3), b'[]{}",:0123456789eE-InfinityNaN'
        if kind == 0:
            Meta.from_dict(loads(mutated(draw, meta, extra), non_finite=True), "x")
        elif kind == 1:
            (folder / "tokens.json").write_bytes(mutated(draw, tokens, extra))
            read_info(folder)
        else:
            (folder / "checksums.json").write_bytes(mutated(draw, sums, extra))
            problems(folder)

    return case


def indices(folder: Path) -> Case:
    """The index of a set of tars."""
    from voken_common.data.tar.format import TarMember
    from voken_common.data.tar.index import Fingerprint, IndexColumns, IndexedTar, TarIndex

    file, columns = folder / "x.index", IndexColumns()
    members = [TarMember(f"{number}.png", 512 * (number + 1), 100, number) for number in range(20)]
    columns.add(IndexedTar("0.tar", Fingerprint(20480, 1, 2), members))
    columns.write(file, str(folder))
    whole = file.read_bytes()

    def case(draw: random.Random) -> None:
        file.write_bytes(mutated(draw, whole, b'[]{}",:0123456789'))
        index = TarIndex(str(file), verify=draw.random() < 0.5)
        for number in range(min(len(index), 30)):
            index.name(number)
            index.tar_number(number)

    return case


def array_records(folder: Path) -> Case:
    """A shard of tokens: the whole file, and single records."""
    from voken_common.data.storage.array_records import array_record_module
    from voken_common.data.tokens.format import Record, decode_record, encode_record

    file, module = folder / "x.array_record", array_record_module()
    record = encode_record(Record(np.arange(16)[:, None], 1, "a/b.png"), (64,))
    writer = module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for _ in range(5):
        writer.write(record)
    writer.close()
    whole = file.read_bytes()

    def case(draw: random.Random) -> None:
        if draw.random() < 0.5:
            decode_record(mutated(draw, record), (64,), 16)
            return
        file.write_bytes(mutated(draw, whole))
        reader = module.ArrayRecordReader(str(file))
        for number in range(min(reader.num_records(), 50)):
            decode_record(reader.read([number])[0], (64,), 16)

    return case


KINDS: dict[str, Callable[[Path], Case]] = {
    "pickles": pickles,
    "safetensors": safetensors,
    "yaml": yaml,
    "metadata": metadata,
    "indices": indices,
    "array_records": array_records,
}


def watch(kind: str, first: int, count: int) -> dict[str, Any]:
    """Read cases of one kind in this process; what was seen."""
    # array_record raises its own errors and nothing else of damaged files: RuntimeError, IndexError.
    allowed = (ValueError, OSError, *((RuntimeError, IndexError) if kind == "array_records" else ()))
    accepted, slowest, wrong = 0, (0.0, 0), {}
    with tempfile.TemporaryDirectory() as name:
        case = KINDS[kind](Path(name))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + count):
            print(number, file=sys.stderr)
            begin = time.monotonic()
            try:
                case(random.Random(f"{kind} {number}"))
                accepted += 1
            except allowed:
                pass
            except Exception as error:
                wrong.setdefault(f"{type(error).__name__}: {error}"[:120], number)
            slowest = max(slowest, (time.monotonic() - begin, number))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"kind": kind, "cases": count, "read": accepted, "seconds": slowest, "growth": growth, "wrong": wrong}


def run(kind: str, first: int, count: int) -> dict[str, Any]:
    """`watch` in a process of its own, whose end is seen too."""
    command = [sys.executable, __file__, "--inside", kind, "--first", str(first), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.split()[-1:] if done.returncode < 0 else done.stderr.splitlines()[-1:]
        return {"kind": kind, "cases": count, "ended": f"status {done.returncode} at {last}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def is_good(found: dict[str, Any]) -> bool:
    """True if a kind stayed within the limits."""
    return (
        "ended" not in found
        and not found["wrong"]
        and found["seconds"][0] <= LONGEST_SECONDS
        and found["growth"] <= LARGEST_GROWTH
    )


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, default=5000, help="cases of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--inside", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(watch(options.inside, options.first, options.count)))
        return 0
    results = []
    for kind in options.kinds:
        results.append(found := run(kind, options.first, options.count))
        if "ended" in found:
            print(f"{kind:14} the interpreter ended: {found['ended']}", flush=True)
            continue
        seconds, case = found["seconds"]
        wrong = f", WRONG {found['wrong']}" if found["wrong"] else ""
        print(
            f"{kind:14} {found['cases']:6} cases, {found['read']:5} read as good, slowest {seconds:6.3f} s "
            f"(case {case}), memory +{found['growth'] / 2**20:6.1f} MiB{wrong}",
            flush=True,
        )
    print(json.dumps(results))
    return 0 if all(is_good(found) for found in results) else 1


if __name__ == "__main__":
    sys.exit(main())
