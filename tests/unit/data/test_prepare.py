"""Walking tars, checking their images, and what `python -m voken_common.data.tar.prepare` writes."""

import concurrent.futures
import io
import os
import subprocess
import sys
import tarfile
import time
import warnings

import pytest
from PIL import Image

from tests.support.tar_sets import encoded, read_json, write_set, write_tar
from voken_common.data.tar import prepare
from voken_common.data.tar.check import IMAGE_KEYS, CheckOptions, check_tar, image_problem, sample_key
from voken_common.data.tar.format import TarDamageError, walk_tar
from voken_common.data.tar.index import TarIndex

LONG = "folder/" + "n" * 180 + ".png"


def walk(data):
    return list(walk_tar(io.BytesIO(data), len(data)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_the_standard_library_finds_them(tmp_path, form):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, size in (("a.jpg", 700), ("empty.png", 0), ("folder/" * 14 + "x.webp", 512), (LONG, 3)):
            if form == tarfile.USTAR_FORMAT and name == LONG:
                continue
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"x" * size))
        for kind, name in ((tarfile.DIRTYPE, "d"), (tarfile.SYMTYPE, "link")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    assert [(member.name, member.start, member.size) for member in walk(path.read_bytes())] == expected


@pytest.mark.parametrize(
    ("change", "found", "message"),
    [
        (lambda data: b"", 0, "the file is empty"),
        (lambda data: data[:1536], 1, "the file ends at byte 1536 without the end of the archive"),
        (lambda data: data[:1700], 1, "the file ends at byte 1700, within a header"),
        (lambda data: data[:2600], 1, "member 'b.png' at byte 1536 needs 700 bytes, the file has 2600"),
        (lambda data: data[:1536] + b"junk" + data[1540:], 1, "no tar header at byte 1536; the rest of the file is"),
        (lambda data: data + bytes(100_000), 2, "the end of the archive is marked at byte 3072, but the file has"),
        (lambda data: data[:1536] + bytes(512) + data[2048:], 1, "zeros at byte 1536 .* but more data after them"),
        (lambda data: b"\x1f\x8b" + data[2:], 0, "is compressed with gzip; random access needs plain tars: unpack it"),
        (lambda data: b"not a tar" * 100, 0, "no tar header at byte 0; it is not a tar"),
    ],
)
def test_damage_is_told_from_an_end(tmp_path, change, found, message):
    data = write_tar(tmp_path / "a.tar", [("a.png", b"a" * 700), ("b.png", b"b" * 700)]).read_bytes()
    members = []
    broken = change(data)
    with pytest.raises(TarDamageError, match=message):
        members.extend(walk_tar(io.BytesIO(broken), len(broken)))
    assert len(members) == found


def warning_image():
    """A palette whose transparency is given in bytes, of which Pillow warns when it converts to RGB."""
    file = io.BytesIO()
    image = Image.new("P", (8, 8))
    image.putpalette(list(range(256)) * 3)
    image.save(file, "PNG", transparency=bytes([0, 128, 255]))
    return file.getvalue()


def test_the_image_of_the_test_warns():
    with pytest.warns(UserWarning, match="Transparency"):
        Image.open(io.BytesIO(warning_image())).convert("RGB")


@pytest.mark.parametrize(
    ("data", "options", "problem"),
    [
        (encoded(3), CheckOptions(), None),
        (b"junk", CheckOptions(), "not an image in a known format"),
        (b"", CheckOptions(), "not an image in a known format"),
        (encoded(3)[:-30], CheckOptions(), "image file is truncated"),
        (warning_image(), CheckOptions(), "warning: Palette images with Transparency"),
        (encoded(3, size=(600, 511)), CheckOptions(min_side=512), "511x600 pixels: a side is under 512"),
        (encoded(3, size=(600, 512)), CheckOptions(min_side=512), None),
        (encoded(3, size=(41, 20)), CheckOptions(max_aspect=2), "20x41 pixels: sides differ by more than 2"),
        (encoded(3, size=(20, 40)), CheckOptions(max_aspect=2), None),
        (encoded(3, size=(300, 1)), CheckOptions(), "1x300 pixels: sides differ by more than 256"),
    ],
    ids=lambda value: "image" if isinstance(value, bytes) else str(value),
)
def test_what_a_good_image_is(data, options, problem):
    found = image_problem(data, options)
    assert found is None if problem is None else found.startswith(problem)
    assert found is None or "object at" not in found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert image_problem(data, options) == found


def test_all_image_keys_and_no_others(tmp_path):
    members = [(f"{i}.{key}", encoded(i, key)) for i, key in enumerate(IMAGE_KEYS)]
    members += [("a.JPG", encoded(7, "jpg")), ("b.txt", b"x"), ("c.v2.jpg", b"x"), ("._d.jpg", b"x"), ("e.json", b"{}")]
    report = check_tar(str(write_tar(tmp_path / "a.tar", members)), CheckOptions())
    assert [member.name for member in report.good] == [f"{i}.{key}" for i, key in enumerate(IMAGE_KEYS)] + ["a.JPG"]
    assert (report.bad, report.damage) == ({}, None)


def test_one_image_per_sample_and_the_last_of_a_name(tmp_path):
    members = [("a.png", encoded(1)), ("a.jpg", encoded(2, "jpg")), ("b.png", b"junk"), ("b.png", encoded(4))]
    report = check_tar(str(write_tar(tmp_path / "a.tar", members)), CheckOptions())
    assert [member.name for member in report.good] == ["a.jpg", "b.png"]
    assert report.bad == {}


@pytest.fixture
def mixed_set(tmp_path):
    """Two tars with 3 and 2 good images; the bad ones are of each sort."""
    root = tmp_path / "laion"
    good = [(f"{i}.png", encoded(i, size=(16, 16))) for i in range(5)]
    bad = [("10.png", b"junk"), ("11.png", warning_image()), ("11.png.png", b""), ("12.jpg", encoded(3, "jpg")[:-60])]
    small = [("13.png", encoded(3, size=(8, 16))), ("14.png", encoded(3, size=(40, 16)))]
    write_tar(root / "webdataset" / "00.tar", good[:3] + bad)
    write_tar(root / "webdataset" / "01.tar", small + good[3:])
    return root


def run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def test_prepare_writes_samples_filter_keys_and_index(mixed_set, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(mixed_set, "--output", out, "--min-side", "12", "--max-aspect", "2", "--workers", "0") == 0
    assert read_json(out / "laion.samples.json") == {"00.tar": 3, "01.tar": 2}
    assert read_json(out / "laion.filter_keys.json") == {
        "00.tar": ["10.png", "11.png", "12.jpg"],
        "01.tar": ["13.png", "14.png"],
    }
    report = read_json(out / "laion.report.json")
    assert report["bad"]["01.tar"]["13.png"] == "16x8 pixels: a side is under 12"
    assert (report["images"], report["good"], report["damaged_tars"]) == (10, 5, {})
    assert (report["passed_over"], report["passed_over_example"]) == ({"00.tar": 1}, "00.tar:11.png.png")
    index = TarIndex(str(out / "laion.index"), str(mixed_set / "webdataset"))
    assert [index.name(i) for i in range(len(index))] == [f"{i}.png" for i in range(5)]
    assert [index.read(i) for i in range(5)] == [encoded(i, size=(16, 16)) for i in range(5)]
    output = capsys.readouterr().out
    assert f"laion: 2 tars, 5 good images, 5 bad: {out}/laion.index" in output
    assert "passed over: members that look like images but are not named <sample>.jpg, .jpeg, .jpeg.jpg, " in output
    assert run(mixed_set, "--output", tmp_path / "all", "--workers", "0") == 0
    assert read_json(tmp_path / "all" / "laion.samples.json") == {"00.tar": 3, "01.tar": 4}


def test_names_that_are_no_text_are_told_as_they_can_be(tmp_path, capsys):
    name = os.fsdecode(b"latin\xe9")
    write_tar(tmp_path / "set" / "0.tar", [(f"{name}.bmp", encoded(1)), (f"{name}.png", encoded(2))])
    assert run(tmp_path / "set", "--output", tmp_path / "out", "--workers", "0") == 0
    assert "for example 0.tar:latin\\udce9.bmp" in capsys.readouterr().out
    assert TarIndex(str(tmp_path / "out" / "set.index"), str(tmp_path / "set")).name(0) == f"{name}.png"


def test_worker_processes_write_the_same(mixed_set, tmp_path):
    for workers in (0, 1):
        assert run(mixed_set, "--output", tmp_path / str(workers), "--workers", workers) == 0
    for name in ("samples.json", "filter_keys.json", "report.json", "index"):
        one, two = (tmp_path / str(workers) / f"laion.{name}" for workers in (0, 1))
        assert one.read_bytes() == two.read_bytes()


def test_an_interrupted_run_goes_on_and_a_changed_tar_is_checked_again(tmp_path, monkeypatch, capsys):
    root = write_set(tmp_path / "set", [2, 3, 4, 5])
    out = tmp_path / "out"
    checked = []

    def check(path, options, stop_before=None):
        if stop_before is not None and path.endswith(stop_before):
            raise KeyboardInterrupt
        checked.append(path[-9:-4])
        return check_tar(path, options)

    monkeypatch.setattr(prepare, "check_tar", lambda path, options: check(path, options, "00002.tar"))
    assert run(root, "--output", out, "--workers", "0") == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    assert not [*out.glob("*.json"), *out.glob("*.index")]
    monkeypatch.setattr(prepare, "check_tar", check)
    # Half of a part, as a machine that lost its power might leave it.
    part = out / "set.parts" / "00000.tar.json"
    part.write_bytes(part.read_bytes()[:50])
    assert run(root, "--output", out, "--workers", "0") == 0
    assert checked == ["00000", "00001", "00000", "00002", "00003"]
    assert read_json(out / "set.samples.json") == {f"{i:05}.tar": i + 2 for i in range(4)}
    checked.clear()
    assert run(root, "--output", out, "--workers", "0") == 0
    assert checked == []
    write_tar(root / "webdataset" / "00003.tar", [("x.png", encoded(1))])
    assert run(root, "--output", out, "--workers", "0") == 0
    assert checked == ["00003"]
    assert read_json(out / "set.samples.json")["00003.tar"] == 1
    checked.clear()
    assert run(root, "--output", out, "--workers", "0", "--min-side", "4") == 0
    assert len(checked) == 4


@pytest.mark.parametrize("choice, samples", [("keep", {"00000.tar": 2, "00001.tar": 3}), ("refuse", {"00000.tar": 2})])
def test_a_tar_cut_in_half_is_reported_and_kept_or_refused(tmp_path, capsys, choice, samples):
    root = write_set(tmp_path / "set", [2, 6])
    path = root / "webdataset" / "00001.tar"
    data = path.read_bytes()
    # A sample takes an image and a caption, each with its header: cut within the fourth image.
    path.write_bytes(data[: 3 * 2048 + 540])
    out = tmp_path / "out"
    assert run(root, "--output", out, "--workers", "0", "--damaged-tars", choice) == 0
    assert read_json(out / "set.samples.json") == samples
    text = {"keep": "kept up to the damage", "refuse": "left out"}[choice]
    assert f"damaged tar {text}: {path}: member '00005.png' at byte 6144 needs" in capsys.readouterr().out
    assert list(read_json(out / "set.report.json")["damaged_tars"]) == [str(path)]
    assert len(TarIndex(str(out / "set.index"), str(root))) == sum(samples.values())


def test_errors_of_the_command(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--output", tmp_path) == 1
    assert (
        f"error: no tars in {tmp_path}/empty: expected {tmp_path}/empty/webdataset/*.tar or" in capsys.readouterr().err
    )
    one, two = write_set(tmp_path / "a" / "set", [1]), write_set(tmp_path / "b" / "set", [1])
    assert run(one, two, "--output", tmp_path) == 1
    assert "sets must have different names, found set, set" in capsys.readouterr().err
    write_tar(tmp_path / "bad" / "0.tar", [("a.png", b"junk"), ("b.bmp", encoded(1))])
    assert run(tmp_path / "bad", "--output", tmp_path / "out", "--workers", "0") == 1
    message = capsys.readouterr().err
    assert "no good image in the 1 tars of" in message
    assert "looked for members named <sample>.jpg, .jpeg, .jpeg.jpg, .jpg.jpg, .png, .webp" in message
    assert "First problems: members that look like images but are not named <sample>.jpg, " in message
    assert ".webp: 1, for example 0.tar:b.bmp; 0.tar: a.png: not an image in a known format" in message
    assert not (tmp_path / "out" / "bad.index").exists()
    assert run(one, tmp_path / "empty", tmp_path / "bad", "--output", tmp_path / "some", "--workers", "0") == 1
    captured = capsys.readouterr()
    assert "set: 1 tars, 1 good images" in captured.out
    assert (tmp_path / "some" / "set.index").is_file()
    assert "error: no tars in" in captured.err
    assert "error: no good image in the 1 tars of" in captured.err
    assert "1 of 3 sets were prepared, 2 were not" in captured.err
    (tmp_path / "file").write_text("")
    assert run(one, "--output", tmp_path / "file", "--workers", "0") == 1
    assert "error: " in capsys.readouterr().err
    for wrong, text in ((["--max-aspect", "0.5"], "at least 1; found 0.5"), (["--workers", "-1"], "at least 0")):
        with pytest.raises(SystemExit):
            run(one, "--output", tmp_path, *wrong)
        assert text in capsys.readouterr().err


def test_a_tar_that_cannot_be_read_names_itself(tmp_path, monkeypatch, capsys):
    root = write_set(tmp_path / "set", [1])

    def refuse(path, options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepare, "check_tar", refuse)
    assert run(root, "--output", tmp_path / "out", "--workers", "0") == 1
    assert (
        f"{root}/webdataset/00000.tar: cannot be read: Permission denied; the same command" in capsys.readouterr().err
    )


def test_samples_are_those_of_webdataset(tmp_path):
    """An independent reader groups members by the same keys."""
    webdataset = pytest.importorskip("webdataset")
    members = [(f"folder/{i}.{key}", encoded(i, key)) for i, key in enumerate(IMAGE_KEYS)]
    members += [("folder/0.txt", b"caption"), ("x.y.jpg", encoded(8, "jpg")), ("b.PNG", encoded(9))]
    path = write_tar(tmp_path / "a.tar", sorted(members))
    found = {}
    for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
        found |= {f"{sample['__key__']}.{key}": sample[key] for key in IMAGE_KEYS if key in sample}
    report = check_tar(str(path), CheckOptions())
    data = path.read_bytes()
    ours = {}
    for member in report.good:
        sample, extension = sample_key(member.name)
        ours[f"{sample}.{extension}"] = data[member.start : member.start + member.size]
    assert ours == found
    assert len(ours) == len(IMAGE_KEYS) + 1


def test_a_process_that_dies_is_reported(tmp_path, monkeypatch, capsys):
    root = write_set(tmp_path / "set", [1, 1])

    class Broken(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, *args, **options):
            super().__init__(1)

        def submit(self, function, *args):
            future = super().submit(function, *args)
            concurrent.futures.wait([future])
            if args[0].endswith("00001.tar"):
                future = concurrent.futures.Future()
                future.set_exception(concurrent.futures.process.BrokenProcessPool("gone"))
            return future

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Broken)
    assert run(root, "--output", tmp_path / "out", "--workers", "2") == 1
    assert "a process that checks tars was killed: by want of memory (use fewer --workers)" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(root, "--output", tmp_path / "out", "--workers", "0") == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    root = write_set(tmp_path / "set", [50] * 12)
    command = [sys.executable, "-m", "voken_common.data.tar.prepare", str(root), "--workers", "1", "--output"]
    kills = 0
    while kills < 3:
        process = subprocess.Popen([*command, str(tmp_path / "out")], stderr=subprocess.DEVNULL)
        before = len(list((tmp_path / "out").rglob("*.tar.json")))
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "out").rglob("*.tar.json"))) < min(before + 2, 12) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        kills += 1
    assert len(list((tmp_path / "out").rglob("*.tar.json"))) >= 6
    for name in ("out", "undisturbed"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
    for name in ("set.index", "set.samples.json", "set.filter_keys.json", "set.report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert read_json(tmp_path / "out" / "set.samples.json") == {f"{i:05}.tar": 50 for i in range(12)}
