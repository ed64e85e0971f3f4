"""Clips out of video files: which frames, resized and cropped how, in which order; short and damaged videos."""

import itertools
import logging
import sys

import av
import numpy as np
import pytest

from voken_common.config.schema.data import DataConfig, ImageFolderConfig, VideoFolderConfig
from voken_common.config.schema.generator import TokenDataConfig
from voken_common.data import transforms
from voken_common.data.errors import DataError, ImageDecodeError, TooManyBadImagesError
from voken_common.data.pipeline import build_train_iterator, build_validation_batches
from voken_common.data.sources import video
from voken_common.data.sources.build import build_source
from voken_common.data.sources.video import ClipReader

CODECS = {"mp4": "libx264", "avi": "mpeg4", "webm": "libvpx"}
STEP = 8
"""Brightness by which neighbouring frames differ: more than any codec here loses of a plain colour."""


def write_video(path, frames, size=(48, 32)):
    """A video whose frame n is plain grey of brightness 8 n (of 31 different ones), with key frames now and then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix[1:]], rate=25, options={"g": "7"})
        stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        for n in range(frames):
            pixels = np.full((size[1], size[0], 3), STEP * (n % 31), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def frame_numbers(clip):
    """Which frames a clip of bytes consists of."""
    return np.rint(np.asarray(clip).reshape(len(clip), -1).mean(axis=1) / STEP).astype(int).tolist()


def clip_numbers(batch):
    return [frame_numbers((clip + 1) * 127.5) for clip in batch["video"]]


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    """Three classes; video i has 20 + i frames."""
    root = tmp_path_factory.mktemp("ucf") / "train"
    names = ["Archery/a.mp4", "Archery/b.avi", "Bowling/c.webm", "Bowling/d.mp4", "Diving/e.avi"]
    for i, name in enumerate(names):
        write_video(root / name, 20 + i)
    return root


def config(root, **changes):
    options = {k: changes.pop(k) for k in ("frames", "stride", "short") if k in changes}
    source = VideoFolderConfig(path=str(root), **options)
    fields = {"train": source, "validation": source, "image_size": 16, "resize": "cv2", "workers": 0}
    return DataConfig(**fields | changes)


def take(data, steps, *, batch_size=5, state=None, **options):
    iterator = build_train_iterator(data, batch_size_per_process=batch_size, seed=2, **options)
    if state is not None:
        iterator.set_state(state)
    batches = list(itertools.islice(iterator, steps))
    state = iterator.get_state()
    iterator.close()
    return batches, state


@pytest.mark.parametrize("extension", CODECS)
@pytest.mark.parametrize("wanted", [[0], [5, 6, 7], [0, 9, 18, 29], [29]])
def test_frames_are_found_by_number(tmp_path, extension, wanted):
    path = str(write_video(tmp_path / f"a.{extension}", 30))
    reader = ClipReader()
    assert reader.frames(path) == 30
    assert [frame_numbers(frame[None])[0] for frame in reader.read(path, wanted)] == wanted
    assert [frame_numbers(frame[None])[0] for frame in video._by_number(path, wanted, True)] == wanted
    assert reader.read(path, wanted)[0].shape == (32, 48, 3)


def test_seeking_is_used_and_gives_what_decoding_from_the_start_gives(tmp_path, monkeypatch):
    path = str(write_video(tmp_path / "a.mp4", 60))
    expected = video._by_number(path, [50, 53], True)
    monkeypatch.setattr(video, "_by_number", None)
    np.testing.assert_array_equal(ClipReader().read(path, [50, 53]), expected)


def test_a_video_without_time_stamps_is_decoded_from_its_start(tmp_path, monkeypatch):
    path = str(write_video(tmp_path / "a.mp4", 12))
    monkeypatch.setattr(video, "_scan", lambda path: 12)
    assert [frame_numbers(frame[None])[0] for frame in ClipReader().read(path, [3, 11])] == [3, 11]
    with pytest.raises(ImageDecodeError, match=r"a\.mp4: only 12 frames decode, frame 12 was to be read"):
        ClipReader().read(path, [12])


def test_the_folder_is_that_of_ucf_101(ucf):
    source = build_source(VideoFolderConfig(path=str(ucf)))
    assert source.describe() == f"video folder {ucf}: 5 videos, 3 classes"
    assert [source.label(i) for i in range(5)] == [0, 0, 1, 1, 2]
    assert source.key(2) == f"{ucf}/Bowling/c.webm"
    with pytest.raises(
        DataError, match=r"no videos in .*; looked for \.mp4, \.avi, \.webm.*Expected\n.*Bowling|no videos"
    ):
        build_source(VideoFolderConfig(path=str(ucf / "Archery"), exclude=("a.mp4", "b.avi")))
    with pytest.raises(DataError, match="no video folder at .*none: it does not exist"):
        build_source(VideoFolderConfig(path=str(ucf / "none")))


def test_training_clips_are_consecutive_frames_from_a_random_start(ucf):
    batches, _ = take(config(ucf), 30)
    starts = {label: set() for label in range(3)}
    for batch in batches:
        assert (batch["video"].shape, batch["video"].dtype) == ((5, 17, 16, 16, 3), np.float32)
        assert sorted(batch["label"]) == [0, 0, 1, 1, 2]
        for clip, label in zip(clip_numbers(batch), batch["label"]):
            assert clip == list(range(clip[0], clip[0] + 17))
            starts[int(label)].add(clip[0])
    # 20 and 21, 22 and 23, 24 frames: every start that there is, and none beyond.
    assert starts == {0: set(range(5)), 1: set(range(7)), 2: set(range(8))}


def test_validation_clips_lie_in_the_middle(ucf):
    batches = list(build_validation_batches(config(ucf), batch_size=3))
    assert [batch["video"].shape for batch in batches] == [(3, 17, 16, 16, 3)] * 2
    mask = np.concatenate([batch["mask"] for batch in batches])
    found = [clip[0] for batch in batches for clip in clip_numbers(batch)]
    assert mask.tolist() == [1, 1, 1, 1, 1, 0]
    assert sorted(found[:5]) == sorted((20 + i) // 2 - 8 for i in range(5))


def test_stride(ucf):
    batches, _ = take(config(ucf, frames=5, stride=3), 10)
    clips = [clip for batch in batches for clip in clip_numbers(batch)]
    assert all(clip == list(range(clip[0], clip[0] + 15, 3)) for clip in clips)
    assert max(clip[-1] for clip in clips) == 23
    middle = next(iter(build_validation_batches(config(ucf, frames=5, stride=3), batch_size=5)))
    assert sorted(clip[0] for clip in clip_numbers(middle)) == sorted((20 + i) // 2 - 6 for i in range(5))


def test_the_order_resumes_on_other_processes(ucf):
    data = config(ucf, crop="random", flip=True)
    whole, _ = take(data, 6, batch_size=4)
    before, state = take(data, 2, batch_size=4)
    parts = [take(data, 4, batch_size=2, state=state, process_index=i, process_count=2)[0] for i in range(2)]
    after = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts)]
    for expected, found in zip(whole, before + after, strict=True):
        np.testing.assert_array_equal(expected["video"], found["video"])
        np.testing.assert_array_equal(expected["label"], found["label"])


@pytest.mark.slow
def test_worker_processes_give_the_same_clips(ucf):
    for expected, found in zip(take(config(ucf), 3)[0], take(config(ucf, workers=2), 3)[0], strict=True):
        np.testing.assert_array_equal(expected["video"], found["video"])


@pytest.mark.parametrize("size", [(50, 36), (36, 50)])
def test_frames_are_resized_as_published_video_tokenizers_did(tmp_path, size):
    write_video(tmp_path / "a.mp4", 2, size=size)
    frame = next(av.open(str(tmp_path / "a.mp4")).decode(video=0)).to_ndarray(format="rgb24")
    # 16 * 58 / 36 = 25.8 is cut to 25, where the convention of images rounds to 26.
    for sides, expected in (((50, 36), (22, 16)), ((36, 50), (16, 22)), ((58, 36), (25, 16))):
        clip = build_clip_loader(tmp_path)
        noise = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
        np.testing.assert_array_equal(clip._resize(noise), transforms.resize_bilinear_cv2(noise, *expected))
    batch = take(config(tmp_path, frames=2, crop="center"), 1, batch_size=1)[0][0]
    resized = clip._resize(frame)
    np.testing.assert_array_equal(batch["video"][0, 0], transforms.to_float(transforms.center_crop(resized, 16, "cv2")))


def build_clip_loader(root):
    from voken_common.data.clips import TrainClip

    data = config(root)
    return TrainClip(build_source(data.train), data)


def test_the_crop_is_the_same_for_all_frames_and_differs_between_clips(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 16, "bgr0"
        column = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 3, 16, axis=0).repeat(3, axis=2)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(column, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    clips = [batch["video"][0] for batch in take(config(tmp_path, frames=3, flip=True), 20, batch_size=1)[0]]
    assert all((clip == clip[:1]).all() for clip in clips)
    lefts = [float((clip[0, 0, 0, 0] + 1) * 127.5 / 3) for clip in clips]
    assert len(set(lefts)) > 8
    steps = {int(np.rint(np.diff(clip[0, 0, :, 0])[0] * 127.5)) for clip in clips}
    assert steps == {3, -3}


@pytest.fixture
def damaged(tmp_path):
    """Twelve good videos of 18 frames, a short one, one cut off, and one of junk."""
    root = tmp_path / "videos"
    for i in range(12):
        write_video(root / f"{i:02}.mp4", 18, size=(16, 16))
    write_video(root / "short.mp4", 9, size=(16, 16))
    cut = write_video(root / "cut.mp4", 18, size=(16, 16))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (root / "junk.avi").write_bytes(b"junk" * 100)
    return root


def test_damaged_and_short_videos_are_reported_and_replaced(damaged, caplog):
    with caplog.at_level(logging.WARNING, logger="voken.data"):
        iterator = build_train_iterator(config(damaged, max_bad_fraction=0.2), batch_size_per_process=15, seed=0)
        for batch in itertools.islice(iterator, 2):
            assert all(clip == list(range(clip[0], clip[0] + 17)) for clip in clip_numbers(batch))
        assert iterator.bad_images == 3
        iterator.close()
    assert f"{damaged}/cut.mp4: not a video that decodes: Invalid data found" in caplog.text
    assert f"{damaged}/junk.avi: not a video that decodes: " in caplog.text
    assert f"{damaged}/short.mp4: found 9 frames, a clip needs 17; `short: repeat` starts such videos" in caplog.text
    assert "the next good video takes its place (bad image 3, 3 allowed)" in caplog.text
    with pytest.raises(TooManyBadImagesError, match="found 2 of 15 images that cannot be decoded"):
        list(
            itertools.islice(
                build_train_iterator(config(damaged, max_bad_fraction=0.1), batch_size_per_process=15, seed=0), 2
            )
        )
    batches = list(build_validation_batches(config(damaged, max_bad_fraction=0.2), batch_size=5))
    assert sum(batch["mask"].sum() for batch in batches) == 12


def test_short_videos_start_again_where_configured(damaged):
    data = config(damaged, max_bad_fraction=0.2, short="repeat")
    clips = [clip for batch in take(data, 2, batch_size=15)[0] for clip in clip_numbers(batch)]
    assert clips.count([*range(9), *range(8)]) >= 2
    strided = config(damaged, max_bad_fraction=0.2, short="repeat", frames=5, stride=4)
    rows = list(build_validation_batches(strided, batch_size=15))
    assert [0, 4, 8, 3, 7] in clip_numbers(rows[0])


def test_a_video_file_without_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ImageDecodeError, match=r"sound\.mp4: it has no video stream"):
        ClipReader().frames(str(tmp_path / "sound.mp4"))


def test_configuration_errors(ucf, monkeypatch):
    with pytest.raises(ValueError, match="train and validation must both be videos or both be images"):
        config(ucf, validation=ImageFolderConfig(path="x"))
    with pytest.raises(ValueError, match="cache keeps single images; set it to false for videos"):
        config(ucf, cache=True)
    assert config(ucf).is_video
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"reading videos needs PyAV, .* pip install 'voken\[data\]'"):
        build_source(VideoFolderConfig(path=str(ucf)))


def test_a_generator_does_not_take_videos():
    videos = DataConfig(train=VideoFolderConfig(path="videos"), image_size=8)
    with pytest.raises(ValueError, match="images gives videos, and generators are for images: use a source of images"):
        TokenDataConfig(images=videos)
