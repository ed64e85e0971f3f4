"""Checksums: what was written is accepted, every changed byte is found, and the damaged file and array are named."""

import json
import random
import zipfile

import numpy as np
import pytest
import torch

from voken_common.checkpoints import checksums as integrity
from voken_common.checkpoints.checksums import Extent, problems, quick_problems, write_checksums, zip_problems
from voken_common.checkpoints.steps import choose_step, failed_write, newest_good, set_aside
from voken_common.checkpoints.torch_pickle import storage_names
from voken_common.errors import CheckpointError, DamagedError


@pytest.fixture
def step(tmp_path):
    """(folder, arrays) of a step with two items and three arrays, one of them in two chunks, one inline."""
    folder = tmp_path / "7"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    data = bytes(random.Random(0).randbytes(5000))
    (folder / "a" / "data").write_bytes(data)
    (folder / "b" / "data").write_bytes(data[::-1])
    (folder / "b" / "empty").touch()
    (folder / "changing").write_text("now")
    arrays = {
        "a/x": [Extent("a/data", 100, 400), Extent("a/data", 2000, 5)],
        "a/y": [Extent(inline=b"123")],
        "b/z": [Extent("b/data", 0, 5000)],
    }
    write_checksums(folder, arrays, ["changing"])
    return folder, arrays


def test_what_was_written_is_good(step):
    folder, arrays = step
    assert problems(folder, None, lambda: arrays) == quick_problems(folder) == []
    content = json.loads((folder / integrity.FILE).read_text())
    assert set(content["files"]) == {"a/data", "b/data", "b/empty"}
    assert set(content["arrays"]) == set(arrays)
    (folder / "changing").write_text("later")
    (folder / "note").write_text("a file of someone else")
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("position", "damaged"), [(100, "a/x"), (499, "a/x"), (2004, "a/x"), (0, None), (500, None), (4999, None)]
)
def test_any_flipped_bit_is_found_and_traced_to_its_array(step, position, damaged):
    folder, arrays = step
    content = bytearray((folder / "a" / "data").read_bytes())
    content[position] ^= 1
    (folder / "a" / "data").write_bytes(content)
    found = problems(folder, None, lambda: arrays)
    assert found[0] == "a/data has another checksum than when it was written"
    assert found[1:] == ([f"damaged array(s): {damaged}"] if damaged else [])
    assert quick_problems(folder) == [], "it takes reading to see it"
    assert problems(folder, ["b"]) == [], "the other item is good"


def test_damage_is_named(step):
    folder, _ = step
    (folder / "a" / "data").write_bytes(b"short")
    assert problems(folder) == ["a/data has 5 bytes, 5000 were written"]
    (folder / "a" / "data").unlink()
    assert quick_problems(folder, ["a"]) == ["a/data is not there (No such file or directory)"]
    (folder / "b" / "data").write_bytes(bytes(5000))

    def unreadable():
        raise RuntimeError("index")

    assert problems(folder, ["b"], unreadable)[1] == "the arrays in it cannot be listed (RuntimeError)"
    assert problems(folder, ["b"], dict)[1] == "damaged array(s): b/z"


def test_damaged_checksums_are_told(step):
    folder, _ = step
    file = folder / integrity.FILE
    whole = file.read_text()
    file.write_text(whole.replace('"size": 5000', '"size": 5001', 1))
    assert "it does not have its own checksum" in problems(folder)[0]
    file.write_text(whole[:50])
    assert "checksums.json cannot be used (JSONDecodeError" in problems(folder)[0]
    file.write_text("[]")
    assert "checksums.json cannot be used (" in problems(folder)[0]
    content = json.loads(whole) | {"format": 2}
    del content["crc32"]
    file.write_text(json.dumps(content | {"crc32": integrity._own_sum(content)}))
    assert "it has format 2, this version reads 1" in problems(folder)[0]


def test_torch_files_are_checked_per_tensor(tmp_path):
    file, generator = tmp_path / "3.pt", torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(300, generator=generator) for name in ("one", "two")}
    torch.save({"step": 3, "generator": tensors}, file)

    def names():
        return storage_names(file)

    assert zip_problems(file, names) == []
    assert set(names().values()) == {"generator.one", "generator.two"}
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        begin = whole.index(np.asarray(tensors["two"]).tobytes())
        assert len([n for n in archive.namelist() if "/data/" in n]) == 2
    for position in (begin, begin + 1199):
        content = bytearray(whole)
        content[position] ^= 1
        file.write_bytes(content)
        assert zip_problems(file, names) == ["generator.two has another checksum than when it was written"]
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "3.pt is no complete archive" in zip_problems(file, names)[0]


def test_the_newest_good_step_is_found(tmp_path, caplog):
    steps = {n: tmp_path / str(n) for n in (2, 4, 6)}
    bad = {6: ["x has 1 bytes, 2 were written"], 4: ["a", "b", "c", "d"]}

    def look(path):
        return bad.get(int(path.name), [])

    assert newest_good(steps, look) == (2, [4, 6])
    assert "step 6 is damaged: x has 1 bytes, 2 were written. Step 2 is used instead" in caplog.text
    assert "step 4 is damaged: a; b; c; and 1 more. Step 2" in caplog.text
    assert choose_step(steps, "latest", None, look) == steps[2]
    assert choose_step(steps, 2, None, look) == steps[2]
    with pytest.raises(
        DamagedError, match=r"4 is damaged: a; b; c; and 1 more\. Restore .*other steps there: \[2, 6\]"
    ):
        choose_step(steps, 4, None, look)
    with pytest.raises(
        DamagedError, match=r"all 3 step\(s\) in .* are damaged, .*step 6: no; step 4: no; step 2: no.*"
    ):
        newest_good(steps, lambda _: ["no"])


def test_damaged_steps_are_set_aside(tmp_path, caplog):
    for _ in range(2):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / "6.pt").write_text("x")
        set_aside(tmp_path, [tmp_path / "checkpoints" / "6.pt"])
    assert sorted(p.name for p in (tmp_path / "damaged_checkpoints").iterdir()) == ["6-2.pt", "6.pt"]
    assert "was moved to" in caplog.text


def test_a_failed_write_says_what_is_left(tmp_path):
    error = failed_write(8, tmp_path, OSError(28, "No space left on device"), [4, 6])
    assert isinstance(error, CheckpointError)
    assert "step 8 could not be written to " in str(error)
    assert "No space left on device" in str(error)
    assert "GiB are free there" in str(error)
    assert "before are intact: [4, 6]" in str(error)
