"""The evaluator's file: what is in it, kills and resumption, several processes, and how much memory it takes."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from voken_common.checkpoints.lock import RunLock
from voken_common.errors import WorkdirError
from voken_common.sampling.npz import NpzWriter

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (4, 6)


def image(number):
    """An image that says which sample it is."""
    return (np.arange(SHAPE[0] * SHAPE[1] * 3).reshape(*SHAPE, 3) * 7 + number).astype(np.uint8)


def draw(numbers):
    return np.stack([image(number) for number in numbers])


def writer(folder, total=23, batch_size=4, settings=None, **options):
    values = {"scale": 2.0} if settings is None else settings
    return NpzWriter(folder / "s.npz", total=total, shape=SHAPE, batch_size=batch_size, settings=values, **options)


def test_every_sample_is_there_once_in_a_shuffled_order(tmp_path):
    sizes, written = [], []

    def watched(numbers):
        sizes.append(len(numbers))
        return draw(numbers)

    assert writer(tmp_path).run(watched, written.append)
    with np.load(tmp_path / "s.npz") as archive:
        assert archive.files == ["arr_0"]
        images = archive["arr_0"]
    assert (images.shape, images.dtype) == ((23, *SHAPE, 3), np.uint8)
    order = images[:, 0, 0, 0].tolist()
    assert sorted(order) == list(range(23))
    assert order != sorted(order)
    np.testing.assert_array_equal(images, draw(order))
    assert set(sizes) == {4}, "one size, so that one program serves all batches"
    assert sum(written) == 23
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz", "s.npz.json"]
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED


def test_the_order_follows_from_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        writer(tmp_path / name, seed=seed).run(draw)
    a, b, c = ((tmp_path / name / "s.npz").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_processes_share_the_work(tmp_path):
    writer(tmp_path / "alone").run(draw)
    shares = [writer(tmp_path / "shared", process_index=i, process_count=3) for i in range(3)]
    assert [share.share for share in shares] == [(0, 7), (7, 15), (15, 23)]
    assert [share.run(draw) for share in shares] == [False, False, True]
    assert (tmp_path / "alone" / "s.npz").read_bytes() == (tmp_path / "shared" / "s.npz").read_bytes()
    assert shares[0].run(draw), "a process that is started again finds the file"


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.unit.sampling.test_samples_npz import draw, writer
count = 0
def mortal(numbers):
    global count
    count += 1
    if count == 3:
        # Half a batch on disk, as a kill in the middle of a write leaves it.
        with open(Path(sys.argv[1]) / "s.npz.parts/process-0/images", "ab") as file:
            file.write(draw(numbers)[:2].tobytes()[:-5])
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(numbers)
writer(Path(sys.argv[1])).run(mortal)
"""


def test_a_killed_run_goes_on_and_its_file_is_that_of_an_undisturbed_one(tmp_path):
    writer(tmp_path / "whole").run(draw)
    folder = tmp_path / "killed"
    folder.mkdir()
    process = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(ROOT)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "s.npz").exists()
    asked = []

    def counting(numbers):
        asked.append(len(numbers))
        return draw(numbers)

    again = writer(folder)
    assert again.done() == 8
    assert again.run(counting)
    assert len(asked) == 4, "whole batches are not drawn again"
    assert (folder / "s.npz").read_bytes() == (tmp_path / "whole" / "s.npz").read_bytes()


def test_other_settings_are_refused(tmp_path):
    def interrupted(numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer(tmp_path).run(interrupted)
    with pytest.raises(ValueError, match=r"s.npz.parts is there .* other settings \(scale; scale was 2.0, is 3.0\)"):
        writer(tmp_path, settings={"scale": 3.0})
    with pytest.raises(ValueError, match=r"\(batch_size; batch_size was 4, is 8\): delete it, or write"):
        writer(tmp_path, batch_size=8)
    writer(tmp_path).run(draw)
    with pytest.raises(ValueError, match=r"s.npz is there and was made with other settings"):
        writer(tmp_path, total=24)
    (tmp_path / "s.npz.json").unlink()
    with pytest.raises(ValueError, match=r"s.npz is there and was made with other settings"):
        writer(tmp_path)


def test_impossible_shares_and_images(tmp_path):
    with pytest.raises(ValueError, match="batch size 4, process 2 of 2"):
        writer(tmp_path, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="batch size 0, process 0 of 1: expected at least 1"):
        writer(tmp_path, batch_size=0)
    with pytest.raises(ValueError, match=r"images are float64 \(4, 6, 3\), expected uint8 \(4, 6, 3\)"):
        writer(tmp_path).run(lambda numbers: draw(numbers).astype(float))


def test_a_share_is_worked_at_once_only(tmp_path):
    with RunLock(tmp_path / "s.npz.parts" / "process-0"):
        with pytest.raises(WorkdirError):
            writer(tmp_path).run(draw)


MEMORY = """
import json, resource, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from voken_common.sampling.npz import NpzWriter
images = np.zeros((8, 256, 256, 3), np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
NpzWriter(sys.argv[1], total=800, shape=(256, 256), batch_size=8, settings={}).run(lambda numbers: images)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    file = tmp_path / "large.npz"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(file), str(ROOT)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert file.stat().st_size > 150e6
    assert json.loads(done.stdout) * 1024 < 15e6
