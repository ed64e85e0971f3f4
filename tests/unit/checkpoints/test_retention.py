"""Old steps are dropped only when a newer one is known to be good as it lies on the disk, in both frameworks."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.unit.checkpoints.test_checkpoint import open_iterator, state_of, tiny_config
from voken_common.checkpoints import checksums as integrity
from voken_common.checkpoints import keeping as run_steps
from voken_common.checkpoints.keeping import RunSteps, StepFiles
from voken_common.config.loading import with_overrides
from voken_common.errors import CheckpointError
from voken_common.processes import Processes
from voken_jax.checkpoints import checksums as jax_integrity
from voken_jax.checkpoints import orbax as jax_checkpoint
from voken_torch.checkpoints import torch as torch_checkpoint

ONE = ("checkpoint.keep_last=1", "checkpoint.keep_best=0")


def flip(path):
    """Change a bit in the middle of a file: data of an array, by the sizes used here."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class JaxRun:
    """A work directory that JAX writes; every step's arrays follow from its number."""

    def __init__(self, folder, overrides, monkeypatch, settings=None):
        self.config = with_overrides(tiny_config(settings or folder), overrides)
        self.folder, self._patch, self._iterator = folder, monkeypatch, open_iterator(self.config)
        self.checkpoints = jax_checkpoint.Checkpoints(folder, self.config.checkpoint)

    def save(self, step, metrics=None):
        self.checkpoints.save(state_of(step), self.config, self._iterator, metrics or {})

    def save_damaged(self, step):
        """A step that reaches the disk with another bit than was written."""
        seal = jax_integrity.seal
        with self._patch.context() as patch:
            self.wait()
            patch.setattr(jax_integrity, "seal", lambda folder: (seal(folder), self._flip(folder)))
            self.save(step)
            self.wait()

    def damage(self, step):
        self._flip(self.folder / "checkpoints" / str(step))

    def wait(self):
        """Until nothing is written in the background."""
        self.checkpoints._manager.wait_until_finished()

    def steps(self):
        return sorted(int(path.name) for path in (self.folder / "checkpoints").iterdir())

    def good(self):
        return int(jax_checkpoint.find_step(self.folder, verify=True).name)

    def close(self):
        self.checkpoints.close()
        self._iterator.close()

    @staticmethod
    def _flip(folder):
        flip(max(folder.glob("generator/**/d/*"), key=lambda path: path.stat().st_size))


class TorchRun:
    """The same by PyTorch."""

    def __init__(self, folder, overrides, monkeypatch, settings=None):
        self.config = with_overrides(tiny_config(settings or folder), overrides)
        self.folder, self._patch = folder, monkeypatch
        self.checkpoints = torch_checkpoint.Checkpoints(folder, self.config.checkpoint)

    def save(self, step, metrics=None):
        weights = {"conv.weight": torch.arange(6000.0) + step}
        content = {"step": torch.tensor(step), "generator": weights, "generator_ema": {}, "rng": torch.zeros(4)}
        state = SimpleNamespace(step=step, to_dict=lambda: content)
        iterator = SimpleNamespace(get_state=lambda: {"position": 8 * step})
        self.checkpoints.save(state, self.config, iterator, metrics or {})

    def save_damaged(self, step):
        """A step that reaches the disk with another bit than was written."""
        write = torch_checkpoint._save

        def writes(content, file):
            write(content, file)
            file.flush()
            flip(Path(file.name))

        with self._patch.context() as patch:
            patch.setattr(torch_checkpoint, "_save", writes)
            self.save(step)

    def damage(self, step):
        flip(self.folder / "checkpoints" / f"{step}.pt")

    def steps(self):
        return sorted(int(path.stem) for path in (self.folder / "checkpoints").iterdir())

    def good(self):
        return int(torch_checkpoint.find_step(self.folder).stem)

    def close(self):
        pass


@pytest.fixture(params=[JaxRun, TorchRun])
def opened(request, tmp_path, monkeypatch):
    """Opens a run with settings over those of the tiny one."""
    runs = []

    def open_run(*overrides):
        runs.append(request.param(tmp_path, overrides, monkeypatch))
        return runs[-1]

    yield open_run
    for run in runs:
        run.close()


def test_a_step_written_damaged_drops_nothing(opened, caplog):
    run = opened(*ONE)
    run.save(1)
    run.save_damaged(2)
    assert run.steps() == [1, 2]
    assert "step 2 is damaged: " in caplog.text
    assert "has another checksum than when it was written" in caplog.text
    assert "It does not count as kept, so older steps stay." in caplog.text
    run.save_damaged(3)
    assert run.steps() == [1, 2, 3]
    assert run.good() == 1, "the last good one is there, whatever came after it"
    run.save(4)
    assert run.steps() == [4], "what is old goes, good or damaged, once a good one stays"
    assert run.good() == 4


def test_a_bit_that_flips_later_does_not_count_as_kept(opened, caplog):
    run = opened("checkpoint.keep_last=2", "checkpoint.keep_best=0")
    for step in (1, 2, 3):
        run.save(step)
    assert run.steps() == [2, 3]
    run.damage(3)
    run.save_damaged(4)
    assert run.steps() == [2, 3, 4], "2 is the last good one: neither 3 nor 4 may take its place"
    assert run.good() == 2
    run.save(5)
    assert run.steps() == [3, 4, 5], "only the newest is read again, so nobody knows about 3; 4 keeps no place"
    assert run.good() == 5
    run.save(6)
    assert run.steps() == [5, 6]


def test_a_step_found_damaged_does_not_count_at_later_saves_either(opened, caplog):
    run = opened("checkpoint.keep_last=2", "checkpoint.keep_best=0")
    run.save(1)
    run.save(2)
    run.save_damaged(3)
    assert run.steps() == [1, 2, 3]
    run.save(4)
    assert run.steps() == [2, 3, 4], "two good ones, 2 and 4"
    assert caplog.text.count("step 3 is damaged: ") == 1, "it is not read again"
    run.save(5)
    assert run.steps() == [4, 5], "3 is older than all that stay"


def test_a_step_that_the_system_cannot_bring_to_the_disk_drops_nothing(opened, monkeypatch, caplog):
    """Read again, it would come from memory, and be right there."""

    def broken(_):
        raise OSError(5, "Input/output error")

    run = opened(*ONE)
    run.save(1)
    with monkeypatch.context() as patch:
        patch.setattr(integrity, "os", SimpleNamespace(**{**vars(os), "fsync": broken}))
        run.save(2)
        assert run.steps() == [1, 2]
    told = "step 2 is damaged: it could not be brought to the disk and read from there ([Errno 5] Input/output error)."
    assert told in caplog.text
    run.save(3)
    assert run.steps() == [3]


def test_a_system_that_keeps_files_in_memory_is_no_damage(opened, monkeypatch, caplog):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(integrity, "os", SimpleNamespace(**{**vars(os), "posix_fadvise": refused}))
    run = opened(*ONE)
    run.save(1)
    run.save(2)
    assert run.steps() == [2]
    assert caplog.text == ""


def test_with_one_step_kept_the_newest_is_verified_each_time(opened):
    run = opened(*ONE)
    run.save(1)
    run.save(2)
    assert run.steps() == [2]
    run.damage(2)
    run.save(3)
    assert run.steps() == [3]
    assert run.good() == 3


def test_the_best_stays_beside_a_verified_one(opened):
    run = opened("checkpoint.keep_last=1", "checkpoint.keep_best=1")
    run.save(1, {"psnr": 30.0})
    run.save(2, {"psnr": 10.0})
    run.damage(1)
    run.save_damaged(3)
    assert run.steps() == [1, 2, 3]
    assert run.good() == 2
    run.save(4, {"psnr": 20.0})
    assert run.steps() == [1, 4]


def test_a_visibly_damaged_step_does_not_count(opened):
    run = opened(*ONE)
    run.save(1)
    run.save_damaged(2)
    place = run.folder / "checkpoints" / ("2" if isinstance(run, JaxRun) else "2.pt")
    if place.is_dir():
        (place / "meta" / "metadata").write_text("{")
    else:
        place.write_bytes(place.read_bytes()[:2000])
    run.save(3)
    assert run.steps() == [2, 3], "it is left to be looked at"


def test_without_checksums_only_what_is_visible_counts(opened, caplog):
    run = opened(*ONE, "checkpoint.checksums=false")
    run.save(1)
    run.save(2)
    run.damage(2)
    run.save(3)
    assert run.steps() == [3]
    assert "damaged" not in caplog.text


def test_steps_are_read_again_only_to_drop_others(opened, monkeypatch):
    read = []
    monkeypatch.setattr(run_steps, "forget_cached", lambda place: read.append(int(place.stem)))
    run = opened("checkpoint.keep_last=2", "checkpoint.keep_best=0")
    for step in (1, 2, 3, 4):
        run.save(step)
    assert read == [3, 4]
    run.save_damaged(5)
    assert read == [3, 4, 5], "3 is not dropped then, so 4 is not needed"
    assert run.steps() == [3, 4, 5]


def test_an_old_step_that_cannot_be_removed_is_told(opened, monkeypatch, caplog):
    run = opened(*ONE)
    run.save(1)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_steps, "_remove", refused)
    run.save(2)
    assert run.steps() == [1, 2]
    assert "an old step could not be removed from" in caplog.text


def test_one_that_cannot_be_removed_does_not_keep_the_others(opened, monkeypatch, caplog):
    run, remove = opened(*ONE), run_steps._remove

    def refused(place):
        if place.stem == "1":
            raise PermissionError(13, "Permission denied")
        remove(place)

    with monkeypatch.context() as patch:
        patch.setattr(run_steps, "_remove", refused)
        for step in (1, 2, 3, 4):
            run.save(step)
        assert run.steps() == [1, 4]
        assert "1 ([Errno 13] Permission denied)" in caplog.text.replace("1.pt", "1")
    run.save(5)
    assert run.steps() == [5], "it is tried again"


def test_what_an_earlier_removal_left_is_removed(opened):
    run = opened(*ONE)
    run.save(1)
    (run.folder / "checkpoints" / "1.dropped.part" / "part").mkdir(parents=True)
    run.save(2)
    assert run.steps() == [2]


def test_a_kill_while_a_step_is_removed_leaves_no_part_of_it(opened, monkeypatch):
    run = opened(*ONE)
    run.save(1)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    run.save(2)
    assert "1" not in {path.name for path in (run.folder / "checkpoints").iterdir()}
    monkeypatch.undo()
    again = opened(*ONE)
    assert again.checkpoints.recover() == 2
    assert again.steps() == [2]


def test_orbax_drops_old_steps_after_an_asynchronous_save(tmp_path, monkeypatch):
    """As on an accelerator: the step is verified and old ones go in the background, before the next save begins."""
    monkeypatch.setattr("jax.default_backend", lambda: "an accelerator")
    run = JaxRun(tmp_path, ONE, monkeypatch)
    for step in (1, 2, 3):
        run.save(step)
    run.close()
    assert run.steps() == [3]
    assert run.good() == 3
    run = JaxRun(tmp_path, ONE, monkeypatch)
    run.save_damaged(4)
    run.save_damaged(5)
    run.close()
    assert run.steps() == [3, 4, 5]
    assert run.good() == 3


def steps_of(function, count):
    """What every one of several processes of a run gets of `by_first`, or the error, and which ran the function."""
    ran, shared, results = [], [], []
    config = SimpleNamespace(checksums=True)
    files = StepFiles(lambda _: {}, None, None, None)
    for index in range(count):

        def gather(value, index=index):
            shared.append(value)
            return [] if index == 0 else [shared[0]]

        steps = RunSteps(None, config, files, Processes(index, 2, gather))
        try:
            results.append(steps.by_first(lambda index=index: (ran.append(index), function())[1]))
        except Exception as error:
            results.append(error)
    return results, ran


def test_the_first_process_acts_for_all():
    assert steps_of(lambda: "done", 3) == (["done"] * 3, [0])

    def full():
        raise CheckpointError("step 4 could not be written")

    results, ran = steps_of(full, 2)
    assert [(type(error), str(error)) for error in results] == [(CheckpointError, "step 4 could not be written")] * 2
    assert ran == [0]

    def mistaken():
        raise ZeroDivisionError("a mistake")

    first, second = steps_of(mistaken, 2)[0]
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, CheckpointError)
    assert str(second) == "process 0 failed (ZeroDivisionError: a mistake)"


def test_a_second_process_hears_that_the_first_could_not_write(tmp_path, monkeypatch):
    """What two real processes do shows tests/multidevice/test_checkpoint_processes.py, which takes longer."""
    error = CheckpointError("step 4 could not be written to the disk")
    second = Processes(1, 2, gather=lambda mine: [(None, error)])
    monkeypatch.setattr(torch_checkpoint, "processes", lambda device: second)
    run = TorchRun(tmp_path, ONE, monkeypatch)
    with pytest.raises(CheckpointError, match="step 4 could not be written to the disk"):
        run.save(4)
    assert not (tmp_path / "checkpoints").exists()
