"""A tiny run in either framework: started as a command or in this process, and what it leaves read as arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
DEVICES = 4
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "network": "vqgan",
        "resolution": 8,
        "channels": 32,
        "channel_multipliers": [1],
        "residual_blocks": 1,
        "z_channels": 8,
    },
    "quantizer": {"kind": "vq", "codebook_size": 24, "code_dim": 8},
    "discriminator": {"kind": "patchgan", "channels": 4, "layers": 1},
    "perceptual": {"weights": "none"},
    "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9},
    "data": {
        "train": {"kind": "skimage", "region": "train", "crops": 40},
        "image_size": 8,
        "resize": "none",
        "workers": 0,
        "cache": True,
    },
    "training": {"batch_size": 8, "steps": STEPS, "log_every": 3},
    "checkpoint": {"every": 2, "keep_last": 3, "keep_best": 0},
}


class Failed(Exception):
    """A fault after which something is not as it must be."""


def require(condition: object, text: str) -> None:
    """Raise Failed with `text` unless the condition holds."""
    if not condition:
        raise Failed(text)


@dataclasses.dataclass(frozen=True)
class Result:
    """Exit status of a command and all it said."""

    status: int
    text: str

    def must(self, status: int, *texts: str) -> Result:
        """Require an exit status and that it said each of the texts."""
        tail = " | ".join(self.text.strip().splitlines()[-4:])[-600:]
        require(self.status == status, f"exit status {self.status}, expected {status}; it said: {tail}")
        for text in texts:
            require(text in self.text, f"it did not say {text!r}; it said: {tail}")
        return self


class Framework:
    """The commands of one framework.

    Args:
        name: jax or torch.
        scratch: a folder for everything.
        mapping: the run's configuration.

    Attributes:
        generator: the same for a generator, once one is asked for (`generators.of`).
    """

    def __init__(self, name: str, scratch: Path, mapping: Mapping[str, Any] | None = None):
        self.name, self.scratch = name, scratch
        self.config = scratch / "tiny.yaml"
        self.config.write_text(yaml.safe_dump(dict(mapping or TINY)))
        self.generator: Framework | None = None
        self._reference: Path | None = None

    def arguments(self, workdir: Path, *overrides: str) -> list[str]:
        """Return the arguments of the training command."""
        device = ["--device", "cpu"] if self.name == "torch" else []
        return [
            *("--config", str(self.config), "--workdir", str(workdir)),
            *device,
            *(part for override in overrides for part in ("--set", override)),
        ]

    def run(self, workdir: Path, *overrides: str, options: tuple[str, ...] = ()) -> Result:
        """Train in this process, by the command's own main function."""
        main: Callable[[list[str]], int] = __import__(f"voken_{self.name}.train", fromlist=["main"]).main
        with captured() as text:
            status = main([*self.arguments(workdir, *overrides), *options])
        return Result(status, text.getvalue())

    def start(
        self,
        workdir: Path,
        *overrides: str,
        before: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        devices: int = DEVICES,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Train in a process of its own; `before` goes between the interpreter and the module."""
        mine = ("--cpu-devices", str(devices)) if self.name == "jax" else ()
        command = [sys.executable, *before, "-m", f"voken_{self.name}.train", *self.arguments(workdir, *overrides)]
        variables = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        return subprocess.Popen(
            [*command, *mine, *options],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reference(self) -> Path:
        """The work directory of a run without any fault."""
        if self._reference is None:
            workdir = self.scratch / "reference"
            self.run(workdir).must(0)
            self._reference = workdir
        return self._reference

    def steps(self, workdir: Path) -> list[int]:
        """Steps that have their final name."""
        folder = workdir / "checkpoints"
        return sorted(int(path.stem) for path in folder.glob("*") if path.stem.isdecimal() and _is_step(path))

    def place(self, workdir: Path, step: int) -> Path:
        """Folder or file of a step."""
        return workdir / "checkpoints" / (str(step) if self.name == "jax" else f"{step}.pt")

    def contents(self, workdir: Path, step: int) -> dict[str, np.ndarray]:
        """All arrays of a step by name, and the position in the data."""
        return self.contents_of(self.place(workdir, step))

    def contents_of(self, place: Path) -> dict[str, np.ndarray]:
        """Read the contents of a step in any folder."""
        if self.name == "torch":
            from voken_torch.checkpoints.torch import read

            content = read(place)
            flat = _flat({key: content[key] for key in ("generator", "generator_ema", "rest") if key in content})
            return flat | {"position": np.asarray(content["data"]["position"])}
        from voken_jax.checkpoints.orbax import read_data
        from voken_jax.conversion.orbax_step import _read_item

        items = [item for item in ("generator", "generator_ema", "rest") if (place / item).is_dir()]
        flat = _flat({item: _read_item(place / item) for item in items})
        return flat | {"position": np.asarray((read_data(place) or {})["position"])}

    def must_equal_reference(self, workdir: Path) -> None:
        """Require the last step and all logged means to be those of the run without a fault, bit for bit."""
        must_equal(self.contents(workdir, STEPS), self.contents(self.reference(), STEPS))
        expected, found = logged(self.reference()), logged(workdir)
        require(expected, "the reference logged nothing")
        for key, value in expected.items():
            require(found.get(key) == value, f"logged {key[0]} at step {key[1]} is {found.get(key)}, expected {value}")


def must_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    """Require the same names, and values that differ by no more than a share of the largest number."""
    require(found.keys() == expected.keys(), f"other arrays: {sorted(found.keys() ^ expected.keys())[:4]}")
    for name, array in expected.items():
        other = found[name]
        if not tolerance:
            same = other.dtype == array.dtype and np.array_equal(other, array)
        else:
            scale = max(float(np.abs(array).max(initial=0)), 1.0)
            same = other.shape == array.shape and float(np.abs(other - array).max(initial=0)) <= tolerance * scale
        require(same, f"{name} is not that of the run without a fault")


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 180) -> None:
    """Return when the condition holds.

    Raises:
        Failed: the process ended before, or it took too long.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise Failed(f"it ended with status {process.returncode} too early: {finish(process).text[-1000:]}")
        if time.monotonic() > deadline:
            kill(process)
            raise Failed(f"it did not come so far in {seconds} s")
        time.sleep(0.002)


def finish(process: subprocess.Popen[str], seconds: float = 180) -> Result:
    """Wait for the end of a process; one that takes longer is a failure."""
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        kill(process)
        raise Failed(f"it did not end in {seconds} s") from error
    return Result(process.returncode, text or "")


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process that was started here and to those it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def heartbeat(workdir: Path) -> dict[str, Any]:
    """Read the heartbeat file; empty if there is none."""
    try:
        return json.loads((workdir / "heartbeat.json").read_text())
    except FileNotFoundError:
        return {}


def logged(workdir: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value of the training metrics in the event files, without rates; of two the later."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[tuple[str, int], float] = {}
    for file in sorted((workdir / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        for record in _records(file.read_bytes()):
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.tag.startswith("train/") and not value.tag.endswith("_per_second"):
                    found[value.tag, event.step] = value.simple_value
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """Records of an event file; the last may be cut off by a kill."""
    position = 0
    while position + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        record = content[position + 12 : position + 12 + length]
        if len(record) < length:
            return
        yield record
        position += 16 + length


def _is_step(path: Path) -> bool:
    return (path / "meta").is_dir() or path.suffix == ".pt"


def _flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, Mapping):
        return {k: v for name, item in tree.items() for k, v in _flat(item, f"{prefix}/{name}").items()}
    if isinstance(tree, list | tuple):
        return _flat(dict(enumerate(tree)), prefix)
    return {prefix: np.asarray(tree)} if tree is not None else {}


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """All that is logged and printed."""
    text = io.StringIO()
    handler, log = logging.StreamHandler(text), logging.getLogger("voken")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = True
