"""Faults of files: damaged checkpoints, full or read-only disks, a clock that runs backwards, two runs at once."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from faults.frameworks import STEPS, Failed, Framework, finish, kill, must_equal, require, wait_for

NEWEST = STEPS - 2
"""Newest step of the interrupted run that is damaged here; the one before is STEPS - 4."""


CHECKPOINTS = {"jax": "voken_jax.checkpoints.orbax", "torch": "voken_torch.checkpoints.torch"}


class NotHere(Exception):
    """A fault that this machine does not let one make; the text says what is missing."""


def interrupted(framework: Framework, name: str) -> Path:
    """The work directory of a run that came as far as step NEWEST."""
    whole = framework.scratch / "interrupted"
    if not whole.exists():
        shutil.copytree(framework.reference(), whole)
        last = framework.place(whole, STEPS)
        shutil.rmtree(last) if last.is_dir() else last.unlink()
    return Path(shutil.copytree(whole, framework.scratch / name))


def continues(framework: Framework, workdir: Path, *texts: str, step: int = NEWEST - 2) -> None:
    """Require that the run goes on from a step, says so, and ends as the one without a fault."""
    framework.run(workdir).must(0, f"continuing at step {step}", *texts)
    must_equal(framework.contents(workdir, STEPS), framework.contents(framework.reference(), STEPS))


def damage(framework: Framework, name: str, harm: Callable[[Path], str], jax: str, torch: str) -> str:
    """Damage the newest step: the run must report it with the reason, and continue from the step before."""
    workdir = interrupted(framework, name)
    what = harm(framework.place(workdir, NEWEST))
    reason = jax if framework.name == "jax" else torch
    continues(framework, workdir, f"step {NEWEST} is damaged: ", reason, f"Step {NEWEST - 2} is used instead")
    aside = workdir / "damaged_checkpoints" / framework.place(workdir, NEWEST).name
    require(aside.exists(), "the damaged step was not set aside")
    return what


def data_file(step: Path) -> Path:
    """The largest file of a step: array data."""
    return step if step.is_file() else max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def middle_of_data(path: Path) -> int:
    """A byte that belongs to an array: in an archive that of the largest entry, between which there is padding."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size // 2
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return entry.header_offset + 30 + name + extra + entry.file_size // 2


def flip(path: Path, position: int | None = None) -> str:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    position = middle_of_data(path) if position is None else position
    content[position] ^= 0x10
    path.write_bytes(content)
    return f"bit of byte {position} of {path.name}"


def truncate(path: Path) -> str:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)
    return f"{path.name} cut in half"


def flipped_array(framework: Framework) -> str:
    """One bit of array data."""
    told = "has another checksum"
    return damage(framework, "flipped_array", lambda step: flip(data_file(step)), told, told)


def truncated_array(framework: Framework) -> str:
    """Array data cut in half."""
    told = f"{NEWEST}.pt is no complete archive"
    return damage(framework, "truncated_array", lambda step: truncate(data_file(step)), "were written", told)


def damaged_metadata(framework: Framework) -> str:
    """Return the file that names the arrays and says where their bytes are."""

    def harm(step: Path) -> str:
        return flip(step, step.stat().st_size - 30) if step.is_file() else flip(step / "generator" / "_METADATA")

    return damage(framework, "metadata", harm, "generator/_METADATA has another checksum", f"{NEWEST}.pt ")


def damaged_meta(framework: Framework) -> str:
    """The configuration inside the step."""

    def harm(step: Path) -> str:
        if step.is_dir():
            return flip(step / "meta" / "metadata")
        return flip(step, step.read_bytes().index(b"codebook_size"))

    return damage(framework, "meta", harm, "meta/metadata has another checksum", "data.pkl has another checksum")


def damaged_position(framework: Framework) -> str:
    """The position in the data."""

    def harm(step: Path) -> str:
        if step.is_dir():
            return truncate(next((step / "data").glob("process_*.json")))
        return flip(step, step.read_bytes().index(b"source_length"))

    return damage(framework, "position", harm, "data/process_0-of-1.json has ", "data.pkl has another checksum")


def damaged_checksums(framework: Framework) -> str:
    """The checksums, missing and changed: a file of JAX's steps, in PyTorch the archive's table of contents."""

    def remove(step: Path) -> str:
        if step.is_dir():
            (step / "checksums.json").unlink()
        else:
            os.truncate(step, step.stat().st_size - 40)
        return "removed"

    def change(step: Path) -> str:
        if step.is_dir():
            file, mark, offset = step / "checksums.json", b'"crc32": ', 9
        else:
            # The sum stands 16 bytes behind the mark of an entry in the table.
            file, mark, offset = step, b"PK\x01\x02", 16
        content = bytearray(file.read_bytes())
        content[content.index(mark) + offset] ^= 1
        file.write_bytes(content)
        return "changed"

    gone = damage(framework, "no_checksums", remove, "checksums.json is not there", "is no complete archive")
    other = damage(framework, "other_checksums", change, "checksums.json", "has another checksum")
    return f"{gone}, {other}"


def asked_for(framework: Framework) -> str:
    """A damaged step that is asked for by number is an error; the others are not."""
    workdir = interrupted(framework, "asked_for")
    flip(data_file(framework.place(workdir, NEWEST)))
    load = __import__(f"voken_{framework.name}.tokenizer.api", fromlist=["Tokenizer"]).Tokenizer.load
    require(load(workdir, step=NEWEST - 2) is not None, "a good step cannot be loaded beside a damaged one")
    try:
        load(workdir, step=NEWEST, weights="raw" if framework.name == "torch" else None)
    except ValueError as error:
        require("is damaged" in str(error), f"it said {error}")
    else:
        # JAX verifies what it reads; the flipped array may belong to the optimizer.
        find = importlib.import_module(CHECKPOINTS[framework.name]).find_step
        try:
            find(workdir, NEWEST, verify=True)
            raise Failed("the damaged step was taken")
        except ValueError as error:
            require("is damaged" in str(error), f"it said {error}")
    return f"step {NEWEST} by number"


def all_damaged(framework: Framework) -> str:
    """Nothing is begun anew where all steps are damaged."""
    workdir = interrupted(framework, "all_damaged")
    steps = framework.steps(workdir)
    for step in steps:
        truncate(data_file(framework.place(workdir, step)))
    framework.run(workdir).must(2, f"all {len(steps)} step(s)", "are damaged")
    require(framework.steps(workdir) == steps, "steps were moved")
    return f"{len(steps)} steps"


@contextlib.contextmanager
def small_disk(framework: Framework, size: int) -> Iterator[Path]:
    """A small file system of its own, where mounting is permitted."""
    place = framework.scratch / f"disk_{size}"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise NotHere(f"mount: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def size(path: Path) -> int:
    """Bytes in a file or folder."""
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def full_disk(framework: Framework) -> str:
    """No space left while a step is written: an error, the steps before intact, and the run goes on with space."""
    source = interrupted(framework, "for_full_disk")
    one = size(framework.place(source, NEWEST))
    with small_disk(framework, size(source) + 4 * one) as disk:
        workdir = Path(shutil.copytree(source, disk / "run"))
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(ballast, max(ballast.stat().st_size - one // 2 - 65536, 0))
        result = framework.run(workdir)
        result.must(2, f"step {STEPS} could not be written", "No space left", "intact", "run the same command")
        require("Traceback" not in result.text, "a trace stands beside the error")
        require(framework.steps(workdir)[-1] == NEWEST, "the old steps are not there any more")
        partial = [p for p in (workdir / "checkpoints").iterdir() if "tmp" in p.name or p.suffix == ".part"]
        require(not partial, f"half-written files stay: {partial}")
        ballast.unlink()
        continues(framework, workdir, step=NEWEST)
    return "tmpfs"


def full_disk_by_limit(framework: Framework) -> str:
    """Meet a full disk through a limit on the size of files, in a process of its own."""
    workdir = interrupted(framework, "file_limit")
    # Orbax cuts arrays into files anew at every step: half the largest of one may be more than any of the next.
    limit = min(data_file(framework.place(workdir, NEWEST)).stat().st_size // 2, 2**16)
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"sys.argv = ['train'] + sys.argv[3:]; runpy.run_module('voken_{framework.name}.train', run_name='__main__')"
    )
    process = framework.start(workdir, before=("-c", code), environment={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    result = finish(process).must(2, f"step {STEPS} could not be written", "File too large", "intact")
    require("Traceback" not in result.text, "a trace stands beside the error")
    continues(framework, workdir, step=NEWEST)
    return f"RLIMIT_FSIZE {limit}"


def read_only(framework: Framework) -> str:
    """A directory that cannot be written to is reported before anything is trained."""
    source = interrupted(framework, "for_read_only")
    with small_disk(framework, 64 << 20) as disk:
        workdir = Path(shutil.copytree(source, disk / "run"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        framework.run(workdir).must(2, "cannot be written to", "another --workdir")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        continues(framework, workdir, step=NEWEST)
    return "tmpfs remounted read-only"


def clock_backwards(framework: Framework) -> str:
    """The newest step carries the oldest time, and the clock runs ten years behind."""
    workdir = interrupted(framework, "clock")
    for age, step in enumerate(framework.steps(workdir)):
        place = framework.place(workdir, step)
        for path in [place, *(place.rglob("*") if place.is_dir() else ())]:
            os.utime(path, (1e9 - 1000 * age, 1e9 - 1000 * age))
    now, now_ns, back = time.time, time.time_ns, 10 * 365 * 86400
    with (
        mock.patch("time.time", side_effect=lambda: now() - back),
        mock.patch("time.time_ns", side_effect=lambda: now_ns() - back * 10**9),
    ):
        continues(framework, workdir, step=NEWEST)
    require(framework.steps(workdir) == [STEPS - 4, STEPS - 2, STEPS], f"kept {framework.steps(workdir)}")
    return "-10 years"


def two_runs(framework: Framework) -> str:
    """A second run on the same directory is refused and says who holds it; after a kill the lock is free."""
    workdir = interrupted(framework, "two_runs")
    # It trains, and comes to no step that it would save.
    process = framework.start(workdir, "training.steps=1000000", "checkpoint.every=1000000")
    try:
        wait_for(lambda: (workdir / "run.lock").exists() and (workdir / "run.lock").read_text().strip(), process)
        framework.run(workdir).must(2, "is in use by another run", f"process {process.pid} on ")
    finally:
        kill(process)
    require(framework.steps(workdir)[-1] == NEWEST, f"steps {framework.steps(workdir)} after a run that saves none")
    continues(framework, workdir, step=NEWEST)
    return f"process {process.pid}"


def lock_in_process(framework: Framework) -> str:
    """Hold the directory from this process, without a second one."""
    from voken_common.checkpoints.lock import RunLock

    workdir = interrupted(framework, "locked")
    with RunLock(workdir):
        framework.run(workdir).must(2, "is in use by another run", f"process {os.getpid()} on ")
    require(framework.steps(workdir)[-1] == NEWEST, "a step was written")
    return "held by this process"


def fuzzed_checkpoints(framework: Framework, count: int = 12, seed: int = 0) -> str:
    """Random damage anywhere in a step is found, or what the step holds is still the same; never a crash."""
    draw, found = random.Random(seed), 0
    problems: Callable[[Path], list[str]]
    if framework.name == "jax":
        from voken_jax.checkpoints.checksums import step_problems as problems
    else:
        from voken_torch.checkpoints.torch import file_problems as problems
    source = interrupted(framework, "fuzz_source")
    for number in range(count):
        place = framework.place(source, NEWEST)
        copy = framework.scratch / f"fuzz_{number}{place.suffix}"
        shutil.copytree(place, copy) if place.is_dir() else shutil.copy(place, copy)
        files = [copy] if copy.is_file() else sorted(p for p in copy.rglob("*") if p.is_file())
        path = draw.choice(files)
        flip(path, draw.randrange(path.stat().st_size)) if draw.random() < 0.7 else truncate(path)
        if problems(copy):
            found += 1
        else:
            must_equal(framework.contents_of(copy), framework.contents_of(place))
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    require(found >= count // 2, f"damage was found in {found} of {count} only")
    return f"found in {found} of {count}, the rest is harmless padding or times"
