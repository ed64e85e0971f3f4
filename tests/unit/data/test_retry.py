"""Reads that fail for a while: the same samples later; for ever: a clear end; for good: a bad image."""

import errno
import itertools
import os
import pickle
import threading
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tests.support.tar_sets import numbers, write_set
from voken_common.config.schema.data import (
    DataConfig,
    ImageFolderConfig,
    TarConfig,
    TarSetConfig,
    TFDSConfig,
    VideoFolderConfig,
)
from voken_common.data.clips import ClipLoader
from voken_common.data.errors import ImageDecodeError, ReadError
from voken_common.data.pipeline import build_train_iterator, build_validation_batches
from voken_common.data.sources import video
from voken_common.data.sources.folder import FileSource
from voken_common.data.sources.tfds import TFDSSource
from voken_common.data.sources.video import ClipReader, VideoFolder
from voken_common.data.storage import files as storage
from voken_common.data.storage import retry
from voken_common.data.storage.array_records import system_error
from voken_common.data.storage.retry import Patience, is_gone
from voken_common.data.tar import prepare
from voken_common.data.tar.index import Fingerprint, TarIndex

COUNT = 9
URL = "flaky://bucket/set/webdataset"
RECORD_ERROR = "pread() failed: Input/output error; reading /data/x-0.array_record; at byte 80356; Could not read from"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retry, "_LONGEST_PAUSE", 0.01)


def failing(times, error, result="read"):
    """A read that fails so many times, and the list of its calls."""
    calls = []

    def attempt():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return result

    return attempt, calls


def stale(number=errno.ESTALE):
    return OSError(number, os.strerror(number), "/data/a.png")


def test_what_is_gone_and_what_may_come_back():
    gone = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
    may_pass = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EMFILE, errno.ENOMEM, errno.EAGAIN)
    assert all(is_gone(stale(number)) for number in gone)
    assert not any(is_gone(stale(number)) for number in may_pass)
    assert not is_gone(OSError("without a number"))
    assert not is_gone(TimeoutError())


def test_a_read_is_tried_again_until_it_succeeds(caplog):
    attempt, calls = failing(5, stale())
    assert Patience(60).read(attempt, lambda: "a.png") == "read"
    assert len(calls) == 6
    assert not caplog.records, "what passes at once is not told"


def test_what_is_gone_is_not_waited_for():
    attempt, calls = failing(1, stale(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        Patience(60).read(attempt, lambda: "a.png")
    assert len(calls) == 1


def test_a_file_that_is_gone_when_the_store_comes_back():
    errors = iter([stale(), stale(errno.ENOENT)])

    def attempt():
        raise next(errors)

    with pytest.raises(FileNotFoundError):
        Patience(60).read(attempt, lambda: "a.png")


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_what_never_succeeds_ends_in_bounded_time_and_says_what_was_tried(seconds):
    attempt, calls = failing(10**9, stale())
    start = time.monotonic()
    with pytest.raises(ReadError) as caught:
        Patience(seconds).read(attempt, lambda: "/data/a.png")
    assert seconds <= time.monotonic() - start < seconds + 5
    message = str(caught.value)
    assert message.startswith(f"/data/a.png: cannot be read: {os.strerror(errno.ESTALE)}. Tried {len(calls)} time")
    assert f"(data.retry_seconds {seconds:g})" in message
    assert "run the same command again; it continues from what it has saved last" in message
    assert len(calls) == 1 if seconds == 0 else len(calls) > 5


def test_an_outage_is_told_once_while_it_lasts_and_when_it_is_over(caplog, monkeypatch):
    monkeypatch.setattr(retry, "_QUIET", 0.0)
    patience, down = Patience(60, "--wait"), threading.Event()
    down.set()

    def attempt():
        if down.is_set():
            raise stale()

    threads = [threading.Thread(target=patience.read, args=(attempt, lambda: "a.png")) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 30
    while not caplog.records and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    down.clear()
    for thread in threads:
        thread.join()
    told, over = (record.getMessage() for record in caplog.records)
    assert told.startswith("a.png: cannot be read for 0 s: ")
    assert told.endswith("trying again for up to 60 s (--wait)")
    assert over.startswith("reading goes on after ")


def test_an_attempt_that_takes_longer_than_is_waited_is_tried_again():
    attempt, calls = failing(1, stale())

    def slow():
        time.sleep(0.2)
        return attempt()

    assert Patience(0.1).read(slow, lambda: "large.tar") == "read"
    assert len(calls) == 2
    calls.clear()
    attempt, calls = failing(10**9, stale())
    with pytest.raises(ReadError, match="Tried 2 times in 0 s"):
        Patience(0.1).read(slow, lambda: "large.tar")


def given_up(patience, name="first.png"):
    """The message with which a read that never succeeds is given up."""
    with pytest.raises(ReadError) as caught:
        patience.read(failing(10**9, stale())[0], lambda: name)
    return str(caught.value)


def test_threads_that_still_wait_end_with_the_first_that_gives_up(caplog):
    patience, messages = Patience(0.4), []
    late = threading.Thread(target=lambda: messages.append(given_up(patience, "late.png")))
    begun = time.monotonic()
    timer = threading.Timer(0.2, late.start)
    timer.start()
    messages.append(given_up(patience))
    timer.join(10)
    late.join(10)
    assert time.monotonic() - begun < 0.6, "late.png alone would be waited for to 0.6 s"
    # Either thread may be the last to note what it met.
    first, second = sorted(messages)
    assert "(data.retry_seconds 0.4)" in first
    assert second.startswith("late.png: cannot be read: ")
    assert "(another read was given up; data.retry_seconds 0.4)" in second
    # Told before the error is on its way to the user.
    assert [record.getMessage() for record in caplog.records] == [first]
    # One that the pool of threads had waiting ends as well, at its first failure.
    assert "Tried 1 time in 0 s (another read was given up" in given_up(patience)
    # A store that is there again is waited for again.
    assert patience.read(lambda: 1, lambda: "a") == 1
    attempt, calls = failing(3, stale())
    assert patience.read(attempt, lambda: "a") == "read"
    assert len(calls) == 4


def test_that_a_read_was_given_up_is_forgotten(monkeypatch):
    monkeypatch.setattr(retry, "_REMEMBERED", 0.05)
    patience = Patience(0.2)
    given_up(patience)
    time.sleep(0.1)
    attempt, calls = failing(1, stale())
    assert patience.read(attempt, lambda: "a.png") == "read"
    assert len(calls) == 2


def test_it_travels_to_worker_processes():
    again = pickle.loads(pickle.dumps(Patience(7.0, "x")))
    assert (again._seconds, again._setting) == (7.0, "x")


class Flaky(MemoryFileSystem):
    """A store that fails as often as it is told, in each of the ways in which stores fail."""

    protocol = "flaky"
    fails = 0
    errors = itertools.cycle(
        [
            TimeoutError("read timed out"),
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            RuntimeError("503 Slow Down"),
            PermissionError("the token has expired"),
            OSError(errno.EIO, "Input/output error"),
        ]
    )

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, start=None, end=None, **_):
        if Flaky.fails > 0:
            Flaky.fails -= 1
            raise next(Flaky.errors)
        return super().cat_file(path, start, end)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A prepared set of tars in the store."""
    root = tmp_path_factory.mktemp("flaky")
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    system = fsspec.filesystem("flaky")
    for tar in (write_set(root / "set", (5, COUNT - 5)) / "webdataset").iterdir():
        system.pipe_file(f"/bucket/set/webdataset/{tar.name}", tar.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "PROTOCOLS", storage.PROTOCOLS | {"flaky"})
        assert prepare.main(["flaky://bucket/set", "--output", str(root), "--workers", "0"]) == 0
        yield str(root / "set.index")


@pytest.fixture(autouse=True)
def store_that_works():
    yield
    Flaky.fails = 0


def of_store(index, location=URL, **changes):
    source = TarConfig(sets=(TarSetConfig(index=index, location=location),))
    fields = {"train": source, "validation": source, "image_size": 8, "workers": 0, "max_bad_fraction": 0}
    return DataConfig(**fields | changes)


def trained_on(data, steps=6, fails=0):
    iterator = build_train_iterator(data, batch_size_per_process=3, seed=5)
    Flaky.fails = fails
    found = [n for batch in itertools.islice(iterator, steps) for n in numbers(batch["image"])]
    assert Flaky.fails == 0, "the failures were met"
    bad = iterator.bad_images
    iterator.close()
    return found, bad


@pytest.mark.parametrize("threads", [1, 3])
def test_a_store_that_fails_for_a_while_changes_nothing(index, threads, caplog):
    undisturbed, _ = trained_on(of_store(index))
    assert trained_on(of_store(index, read_threads=threads), fails=17) == (undisturbed, 0)
    Flaky.fails = 8
    seen = list(build_validation_batches(of_store(index), batch_size=4))
    assert sum(batch["mask"].sum() for batch in seen) == COUNT
    assert not caplog.records


def test_a_store_that_fails_for_ever_stops_the_run_and_counts_nothing_bad(index):
    iterator = build_train_iterator(of_store(index, retry_seconds=0.2), batch_size_per_process=3, seed=5)
    next(iterator)
    Flaky.fails = 10**9
    start = time.monotonic()
    with pytest.raises(ReadError, match=r"^flaky://bucket/set/webdataset/0000\d\.tar:\d+\.png: cannot be read: .*T"):
        list(itertools.islice(iterator, 9))
    assert time.monotonic() - start < 10
    assert iterator.bad_images == 0
    with pytest.raises(ReadError):
        list(build_validation_batches(of_store(index, retry_seconds=0.2), batch_size=4))


def test_a_tar_that_is_gone_from_a_store_gives_bad_images_at_once(index):
    iterator = build_train_iterator(of_store(index, max_bad_fraction=0.9), batch_size_per_process=COUNT, seed=0)
    system = fsspec.filesystem("flaky")
    content = system.cat_file("/bucket/set/webdataset/00001.tar")
    system.rm("/bucket/set/webdataset/00001.tar")
    try:
        start = time.monotonic()
        next(iterator)
        assert time.monotonic() - start < 10
        assert iterator.bad_images == COUNT - 5
    finally:
        iterator.close()
        system.pipe_file("/bucket/set/webdataset/00001.tar", content)


def test_a_part_of_an_image_is_not_the_image(index, monkeypatch):
    undisturbed, _ = trained_on(of_store(index))
    # The larger cut leaves less than the header.
    whole, cut = Flaky.cat_file, [400, 1]

    def cat_file(self, path, start=None, end=None, **_):
        # The beginnings of tars are looked at when they are opened.
        return whole(self, path, start, end - cut.pop() if cut and start else end)

    tar = "flaky://bucket/set/webdataset/00001.tar"
    before = Fingerprint.of(tar)
    monkeypatch.setattr(Flaky, "cat_file", cat_file)
    assert trained_on(of_store(index)) == (undisturbed, 0)
    assert not cut
    monkeypatch.setattr(Flaky, "cat_file", lambda *args, **options: whole(*args, **options)[:4089])
    with pytest.raises(OSError, match="4089 of 4096 bytes arrived"):
        before.change(tar, storage.FileInfo(before.size, before.modified + 1))


def test_preparing_waits_for_the_store_too(index, tmp_path, capsys, monkeypatch):
    command = ["flaky://bucket/set", "--output", str(tmp_path), "--workers", "0"]
    Flaky.fails = 4
    assert prepare.main(command) == 0
    assert TarIndex(tmp_path / "set.index", URL).contents() == TarIndex(index, URL).contents()
    Flaky.fails = 10**9
    again = [*command[:-3], str(tmp_path / "again"), *command[-2:], "--retry-seconds", "0.1"]
    assert prepare.main(again) == 1
    error = capsys.readouterr().err
    assert "error: flaky://bucket/set/webdataset/00000.tar: cannot be read: " in error
    assert "(--retry-seconds 0.1)" in error
    assert "run the same command again" in error
    Flaky.fails = 0
    monkeypatch.setattr(storage._StoreFile, "read", _broken)
    assert prepare.main([*again[:-1], "0"]) == 1
    assert "Tried 1 time in 0 s" in capsys.readouterr().err


def _broken(self, size):
    with storage._store_errors(self._url):
        raise RuntimeError("the connection broke")


@pytest.fixture
def folder(tmp_path):
    for i in range(COUNT):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return DataConfig(train=ImageFolderConfig(path=str(tmp_path)), image_size=8, workers=0, crop="center")


def test_a_local_disk_that_fails_for_a_while_changes_nothing(folder, monkeypatch):
    undisturbed, _ = trained_on(folder)
    read, fails = FileSource.read, itertools.count()

    def flaky(self, index):
        if next(fails) < 11:
            raise stale(errno.EIO)
        return read(self, index)

    monkeypatch.setattr(FileSource, "read", flaky)
    assert trained_on(folder) == (undisturbed, 0)


def test_a_file_that_is_there_again_is_not_missing(tmp_path):
    (tmp_path / "other.png").write_bytes(b"")
    file = tmp_path / "a.png"
    with pytest.raises(FileNotFoundError), storage.folder_expected(str(tmp_path)):
        file.read_bytes()

    def read_before_it_comes_back():
        try:
            file.read_bytes()
        finally:
            file.write_bytes(b"")

    # The folder may come back after the read and before the look at it.
    with pytest.raises(OSError, match="is again") as caught, storage.folder_expected(str(tmp_path)):
        read_before_it_comes_back()
    assert not is_gone(caught.value)


def test_a_folder_that_vanishes_as_a_whole_is_waited_for(folder, tmp_path):
    undisturbed, _ = trained_on(folder)
    iterator = build_train_iterator(folder, batch_size_per_process=3, seed=5)
    away = tmp_path.with_name("unmounted")
    tmp_path.rename(away)
    threading.Timer(0.3, away.rename, [tmp_path]).start()
    found = [n for batch in itertools.islice(iterator, 6) for n in numbers(batch["image"])]
    assert (found, iterator.bad_images) == (undisturbed, 0)
    iterator.close()
    tmp_path.rename(away)
    iterator = build_train_iterator(
        folder.model_copy(update={"retry_seconds": 0.1}), batch_size_per_process=3, seed=5, source=iterator.source
    )
    with pytest.raises(
        ReadError, match=r"\.png: cannot be read: the folder .* is not there any more, or empty\. Tried"
    ):
        next(iterator)
    away.rename(tmp_path)


@pytest.fixture
def tars(tmp_path):
    """Tars in a folder of their own, and what is trained on."""
    place = write_set(tmp_path / "set", (5, COUNT - 5)) / "webdataset"
    assert prepare.main([str(tmp_path / "set"), "--output", str(tmp_path), "--workers", "0"]) == 0
    return place, of_store(str(tmp_path / "set.index"), None)


@pytest.mark.parametrize("empty", [False, True])
def test_the_folder_of_local_tars_is_waited_for_too(tars, empty):
    place, data = tars
    undisturbed, _ = trained_on(data)
    iterator = build_train_iterator(data, batch_size_per_process=3, seed=5)
    for tar in place.iterdir():
        # As if others had been read since.
        storage._handles.drop(str(tar))
    away = place.with_name("unmounted")

    def back():
        if empty:
            place.rmdir()
        away.rename(place)

    place.rename(away)
    if empty:
        place.mkdir()
    threading.Timer(0.3, back).start()
    found = [n for batch in itertools.islice(iterator, 6) for n in numbers(batch["image"])]
    assert (found, iterator.bad_images) == (undisturbed, 0)
    iterator.close()


def test_the_folder_of_videos_is_waited_for_too(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"never read")
    config = DataConfig(train=VideoFolderConfig(path=str(folder), frames=2), image_size=8, retry_seconds=0.1)
    clips = ClipLoader(VideoFolder(config.train), config)
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(ReadError, match=r"a\.mp4: cannot be read: the folder .*videos is not there any more, or empty"):
        clips.clip(0, None)
    (tmp_path / "unmounted").rename(folder)
    (folder / "a.mp4").unlink()
    with pytest.raises(ImageDecodeError, match=r"a\.mp4: cannot be read: No such file"):
        clips.clip(0, None)


def test_a_handle_that_went_stale_is_opened_anew(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert storage.read_range(str(path), 0, 3) == b"abc"
    old, pread = storage._handles.get(str(path)).descriptor, os.pread

    def stale_pread(descriptor, size, start):
        if descriptor == old:
            raise stale()
        return pread(descriptor, size, start)

    # Keeps the number of the old one taken.
    held = storage._handles.get(str(path))
    monkeypatch.setattr(os, "pread", stale_pread)
    assert Patience(30).read(lambda: storage.read_range(str(path), 0, 3), lambda: "a") == b"abc"
    assert held.descriptor == old


def test_errors_of_array_record_that_are_the_systems():
    failed = system_error(RuntimeError(RECORD_ERROR))
    assert (failed.errno, failed.filename) == (errno.EIO, "/data/x-0.array_record")
    gone = system_error(RuntimeError("open() failed: No such file or directory; opening /data/x-0.array_record"))
    assert isinstance(gone, FileNotFoundError)
    assert system_error(RuntimeError("read() failed: Something new; reading /x")).errno == errno.EIO
    assert system_error(RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch")) is None


class Records:
    """Records whose reader fails until it is opened anew, as array_record's does."""

    def __init__(self):
        self.data_source, self.opened = self, 0

    def __copy__(self):
        again = Records()
        again.opened = self.opened + 1
        return again

    def __getitem__(self, index):
        # Each of the two copies that reopening takes counts.
        if self.opened < 2:
            raise RuntimeError(RECORD_ERROR)
        return {"image": b"png", "label": 3}


def test_records_are_read_again_through_new_readers():
    source = TFDSSource.__new__(TFDSSource)
    source._config, source._records = TFDSConfig(name="tiny", split="train"), Records()
    source._numbers = None
    with pytest.raises(OSError, match="Input/output error"):
        source.read(0)
    assert Patience(30).read(lambda: source.read(0), lambda: "x") == (b"png", 3)


def test_a_video_is_damaged_only_if_its_file_can_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")
    reader = ClipReader()
    with pytest.raises(ImageDecodeError, match=r"a\.mp4: not a video that decodes: Invalid data"):
        reader.frames(str(path))

    def refuse(*_):
        raise stale(errno.EIO)

    monkeypatch.setattr(video, "open", refuse, raising=False)
    with pytest.raises(OSError, match="Input/output error"):
        reader.frames(str(path))
    monkeypatch.setattr(
        video, "_scan", lambda path: (_ for _ in ()).throw(ImageDecodeError(f"{path}: it has no frames"))
    )
    with pytest.raises(OSError, match="Input/output error"):
        reader.frames(str(path))


def test_the_setting_is_checked():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        DataConfig(train=ImageFolderConfig(path="x"), image_size=8, retry_seconds=-1.0)
    with pytest.raises(SystemExit):
        prepare.main(["x", "--output", "y", "--retry-seconds", "-1"])
