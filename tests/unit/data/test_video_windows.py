"""Videos as streams: windows, tiles and fades put back what they cut; files keep time, size, colours and sound."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_video import picture, write_video
from voken_common.data.errors import ImageDecodeError
from voken_common.data.sources.video import ClipReader
from voken_common.data.video.reading import VideoStream
from voken_common.data.video.windows import CrossFade, Cutting, WindowCoder, padded_length, starts, windows_of
from voken_common.data.video.writing import VideoWriter


def copied(source, target, **settings):
    """A video written again, frame by frame."""
    stream = VideoStream(source)
    sound = str(source) if stream.info.has_audio else None
    with VideoWriter(target, rate=stream.info.rate, sound_of=sound, **settings) as writer:
        for frame in stream:
            writer.write(frame.pixels, frame.time)
    return writer


def identity(cutting, factor=8, time=4):
    """A coder whose tokens are the pixels themselves."""
    return WindowCoder(lambda clips: clips, lambda ids: ids, factor, time, cutting)


@given(count=st.integers(1, 40), window=st.sampled_from([5, 9, 17]), fade=st.integers(0, 4))
def test_windows_and_fades_give_every_frame_once(count, window, fade):
    cutting, join = Cutting(window=window, fade=fade), CrossFade(fade)
    frames = np.arange(count, dtype=np.float32)[:, None, None, None]
    out = []
    for part in windows_of(range(count), cutting):
        out += join.join(frames[part])
    out += join.flush()
    np.testing.assert_allclose(np.stack(out), frames, rtol=1e-6)


@given(height=st.integers(1, 90), width=st.integers(1, 90), frames=st.integers(1, 9))
def test_tiles_put_back_what_they_cut(height, width, frames):
    clip = np.random.default_rng(0).uniform(-1, 1, (frames, height, width, 3)).astype(np.float32)
    coder = identity(Cutting(window=9, tile=32, blend=8))
    tokens = coder.encode(clip)
    assert tokens.ids.shape[1] == padded_length(frames, 4)
    assert set(tokens.ids.shape[2:4]) <= {min(32, -(-side // 8) * 8) for side in (height, width)}
    np.testing.assert_allclose(coder.decode(tokens), clip, atol=1e-6)


def test_tiles_lie_on_tokens_and_share_enough():
    for side in range(40, 400, 8):
        first = starts(side, 40, 16, 8)
        assert first[0] == 0
        assert first[-1] == side - 40
        assert all(value % 8 == 0 for value in first)
        assert all(0 < b - a <= 24 + 4 for a, b in itertools.pairwise(first))


def test_windows_that_do_not_fit_are_refused():
    for settings, message in (
        ({"window": 16}, "window 16: a clip has 16 frames"),
        ({"fade": 17}, "expected 0 to 16"),
        ({"tile": 100}, "expected a multiple of 8"),
        ({"tile": 32, "blend": 32}, "expected less than --tile 32"),
    ):
        with pytest.raises(ValueError, match=message):
            identity(Cutting(**settings))


def test_a_window_of_published_length_is_seen_whole():
    tokens = identity(Cutting()).encode(np.zeros((17, 128, 128, 3), np.float32))
    assert tokens.ids.shape == (1, 17, 128, 128, 3)


@pytest.mark.parametrize("sides", [(48, 64), (37, 51)])
def test_frames_times_and_size_survive(tmp_path, sides):
    times = [int(i**1.7 * 20) for i in range(24)]
    pixels = "yuv444p" if sides[0] % 2 else "yuv420p"
    source = write_video(tmp_path / "vfr.mp4", 24, sides, times=times, pixels=pixels)
    copied(source, tmp_path / "out" / "copy.mp4")
    before, after = (list(VideoStream(path)) for path in (source, tmp_path / "out" / "copy.mp4"))
    assert [round(1000 * frame.time) for frame in after] == [time - times[0] for time in times]
    for number, (a, b) in enumerate(zip(before, after, strict=True)):
        assert b.pixels.shape == (*sides, 3)
        assert np.abs(b.pixels.astype(int) - picture(number, *sides)).mean() < 3
        assert np.abs(b.pixels.astype(int) - a.pixels).mean() < 2


def test_sound_is_copied_packet_by_packet(tmp_path):
    source = write_video(tmp_path / "talk.mp4", 12, sound=True)
    writer = copied(source, tmp_path / "copy.mp4")
    assert not writer.without_sound
    packets = []
    for path in (source, tmp_path / "copy.mp4"):
        with av.open(str(path)) as container:
            packets.append([bytes(p) for p in container.demux(container.streams.audio[0]) if p.size])
    assert packets[0] == packets[1]


def test_sound_that_mp4_does_not_take_is_told(tmp_path):
    path = tmp_path / "pcm.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=10), container.add_stream("wavpack", rate=16000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(6):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16p", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
    writer = copied(path, tmp_path / "copy.mp4")
    assert "cannot be copied into MP4" in writer.without_sound
    assert len(list(VideoStream(tmp_path / "copy.mp4"))) == 6


@pytest.mark.parametrize("full_range", [False, True])
def test_colour_range_survives(tmp_path, full_range):
    with VideoWriter(tmp_path / "a.mp4", rate=Fraction(10), full_range=full_range) as writer:
        for number in range(4):
            writer.write(picture(number), Fraction(number, 10))
    stream = VideoStream(tmp_path / "a.mp4")
    assert stream.info.full_range == full_range
    for number, frame in enumerate(stream):
        assert np.abs(frame.pixels.astype(int) - picture(number)).mean() < 3


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def failing():
        with VideoWriter(tmp_path / "a.mp4", rate=Fraction(10)) as writer:
            writer.write(picture(0), Fraction(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        failing()
    assert not list(tmp_path.iterdir())


def test_the_good_part_of_a_damaged_video_is_read_and_the_damage_told(tmp_path):
    source = write_video(tmp_path / "whole.mkv", 40, codec="mpeg4")
    data = source.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    stream = VideoStream(tmp_path / "cut.mkv")
    assert 5 < len(list(stream)) < 40


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ImageDecodeError, match=r"empty\.mp4"):
        VideoStream(tmp_path / "empty.mp4")
    with pytest.raises(OSError, match=r"gone\.mp4"):
        VideoStream(tmp_path / "gone.mp4")


def test_resampled_to_another_rate_each_time_shows_the_frame_of_that_moment(tmp_path):
    path = str(write_video(tmp_path / "vfr.mp4", 6, times=[0, 100, 200, 300, 1000, 1100]))
    slow, fast = ClipReader(fps=5), ClipReader(fps=20)
    assert slow.frames(path) == 6
    blue = [int(frame[24, 32, 2]) for frame in slow.read(path, [0, 1, 2, 3, 4, 5])]
    # At 0, 0.2, 0.4, 0.6, 0.8 and 1 second: frames 0, 2, 3, 3, 3 and 4.
    assert np.abs(np.array(blue) - [20 + 9 * number for number in (0, 2, 3, 3, 3, 4)]).max() <= 4
    assert slow.times(path, [0, 3, 5]) == [0.0, 0.6, 1.0]
    assert fast.frames(path) == 23
