"""Videos into token shards and back: windows, times, resuming, what cannot be read."""

import json

import numpy as np
import pytest

from tests.support.tiny_video import video_run, write_video
from voken_common.config.loading import validate
from voken_common.data.tokens.decode_videos import decode_videos
from voken_common.data.tokens.encode import Encoding, encode_dataset
from voken_common.data.tokens.shards import TokenShardSource
from voken_common.data.video.reading import VideoStream


class Brightness:
    """A tokenizer whose ids are the brightness of a patch in every second frame."""

    downsampling, time_downsampling = 2, 2

    def __init__(self, config):
        self.config, self.calls = config, 0

    def fingerprint(self):
        return "0" * 64

    def encode(self, clips):
        self.calls += 1
        grey = clips[:, ::2].mean(-1)
        batch, frames, height, width = grey.shape
        patches = grey.reshape(batch, frames, height // 2, 2, width // 2, 2).mean((3, 5))
        return np.round((patches + 1) * 127.5).astype(np.int32)

    def decode(self, ids):
        grey = (ids / 127.5 - 1).repeat(2, 2).repeat(2, 3).repeat(2, 1)[:, 1:]
        return np.broadcast_to(grey[..., None], (*grey.shape, 3)).astype(np.float32)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos" / "class"
    folder.mkdir(parents=True)
    write_video(folder / "a.mp4", 12)
    write_video(folder / "b.mp4", 7, times=[0, 10, 50, 200, 210, 400, 1000])
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    write_video(folder / "single.mkv", 1)
    return tmp_path / "videos"


def encoded(videos, output, **settings):
    config = validate(video_run(videos), "test")
    data = config.data.model_copy(update={"max_bad_fraction": 0.5})
    tokenizer = Brightness(config)
    info = encode_dataset(tokenizer, data, output, Encoding(batch_size=2, samples_per_shard=2, show=False, **settings))
    return tokenizer, info


def test_windows_have_their_frames_and_times(videos, tmp_path):
    _, info = encoded(videos, tmp_path / "tokens")
    assert info.grid == (3, 8, 8)
    assert (info.samples, info.records, info.bad) == (7, 6, 1)
    source = TokenShardSource(tmp_path / "tokens")
    found = [(source[i]["key"], source[i]["crop"], source.times(i)) for i in range(len(source))]
    assert found == [
        ("class/a.mp4", 0, (0.0, 0.1, 0.2, 0.3, 0.4)),
        ("class/a.mp4", 1, (0.5, 0.6, 0.7, 0.8, 0.9)),
        ("class/a.mp4", 2, (1.0, 1.1)),
        ("class/b.mp4", 0, (0.0, 0.01, 0.05, 0.2, 0.21)),
        ("class/b.mp4", 1, (0.4, 1.0)),
        ("class/single.mkv", 0, (0.0,)),
    ]


def test_decoding_gives_videos_with_the_same_times(videos, tmp_path):
    tokenizer, _ = encoded(videos, tmp_path / "tokens")
    count = decode_videos(tokenizer, TokenShardSource(tmp_path / "tokens"), tmp_path / "out", batch_size=2, show=False)
    assert count == 3
    for name, frames in (("a.mp4", 12), ("b.mp4", 7), ("single.mkv", 1)):
        before = list(VideoStream(videos / "class" / name))
        after = list(VideoStream(tmp_path / "out" / "class" / f"{name}.mp4"))
        assert len(before) == len(after) == frames
        assert [round(f.time, 3) for f in before] == [round(f.time, 3) for f in after]
        # The middle square of each frame, by its brightness; the frame before stands in for every second one.
        for place in range(0, frames - frames % 5, 5):
            square = before[place].pixels[:, 8:56].mean()
            assert after[place].pixels.mean() == pytest.approx(square, abs=6)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(videos, tmp_path):
    encoded(videos, tmp_path / "whole")
    encoded(videos, tmp_path / "parts")
    (tmp_path / "parts" / "shard-00001.json").unlink()
    tokens = json.loads((tmp_path / "parts" / "tokens.json").read_text()) | {"complete": False}
    (tmp_path / "parts" / "tokens.json").write_text(json.dumps(tokens))
    tokenizer, _ = encoded(videos, tmp_path / "parts")
    assert tokenizer.calls == 1
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes(), file.name


def test_what_does_not_fit_is_refused(videos, tmp_path):
    with pytest.raises(ValueError, match="videos are cut into windows"):
        encoded(videos, tmp_path / "tokens", crops=2)
    images = validate(video_run(videos), "test")
    tokenizer = Brightness(images)
    data = images.data.model_copy(update={"train": images.data.train.model_copy(update={"frames": 4})})
    with pytest.raises(ValueError, match="a clip has 4 frames"):
        encode_dataset(tokenizer, data, tmp_path / "tokens", Encoding(show=False))
