"""Encoding a data set with a tokenizer that is plain arithmetic: crops, shards, processes, bad images, resumption."""

import hashlib
import json
import logging
import os
import signal

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny import SHALLOW, TINY, quantized_by
from voken_common.commands import main as command
from voken_common.commands.encode import transfer
from voken_common.config.loading import ConfigError, validate
from voken_common.config.schema.data import DataConfig
from voken_common.data.errors import DataError, TooManyBadImagesError
from voken_common.data.sources.skimage import Photographs
from voken_common.data.tokens import encode as tokens_encoding
from voken_common.data.tokens.decode import decode_dataset
from voken_common.data.tokens.encode import Encoding, encode_dataset, vocabularies
from voken_common.data.tokens.format import join_ids
from voken_common.data.tokens.requested import data_config
from voken_common.data.tokens.shards import TokenShardSource
from voken_common.pixels import from_uint8

COUNT, SIDE, FACTOR = 11, 8, 2


class Corners:
    """The id of a cell is the red value of its top left pixel; decoding paints the cell grey in it."""

    def __init__(self, config=None, mark="1"):
        self.config = config or validate(TINY, "tiny")
        self.downsampling, self.mark, self.shapes = FACTOR, mark, []

    def encode(self, images):
        self.shapes.append(images.shape)
        return np.rint((images[:, ::FACTOR, ::FACTOR, 0] + 1) * 127.5).astype(np.int32)

    def decode(self, ids):
        grey = np.repeat(np.repeat(ids, FACTOR, 1), FACTOR, 2).astype(np.uint8)
        return from_uint8(np.stack([grey] * 3, -1)).astype(np.float64)

    def fingerprint(self):
        return hashlib.sha256(self.mark.encode()).hexdigest()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven images of noise in two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (SIDE, SIDE + 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "ab"[i % 2] / f"{i:02}.png")
    return root


def data(images, **changes):
    section = {"train": {"kind": "image_folder", "path": str(images)}, "image_size": SIDE, "workers": 0}
    return validate(TINY | SHALLOW | {"data": section | changes}, "data").data


def encode(images, output, *, tokenizer=None, changes=None, **settings):
    settings = {"show": False, "samples_per_shard": 4, "batch_size": 3} | settings
    return encode_dataset(tokenizer or Corners(), data(images, **changes or {}), output, Encoding(**settings))


def same_files(one, other):
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def pixels_of(images, key):
    return np.asarray(Image.open(images / key))


class Killed(Photographs):
    """A source that ends the process that reads it."""

    def read(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_was_killed_is_told(images, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_encoding, "build_source", lambda _: Killed("all", crops=2))
    with pytest.raises(DataError, match="Worker process was terminated unexpectedly with exit code -9") as caught:
        encode(images, tmp_path, changes={"workers": 1})
    assert str(caught.value).endswith("The same command continues from what it has saved last.")


def test_ids_labels_and_keys(images, tmp_path):
    tokenizer = Corners()
    info = encode(images, tmp_path, tokenizer=tokenizer)
    assert (info.grid, info.vocabularies, info.records, info.classes) == ((4, 4), (256,), COUNT, 2)
    assert set(tokenizer.shapes) == {(3, SIDE, SIDE, 3)}, "one static shape"
    source = TokenShardSource(tmp_path)
    keys = [source[i]["key"] for i in range(COUNT)]
    assert keys == sorted(str(p.relative_to(images)) for p in images.rglob("*.png"))
    for i, key in enumerate(keys):
        centre = pixels_of(images, key)[:, 3 : 3 + SIDE]
        np.testing.assert_array_equal(source[i]["tokens"][:, 0].reshape(4, 4), centre[::FACTOR, ::FACTOR, 0])
        assert source[i]["label"] == "ab".index(key[0])


def test_several_crops_of_each_image(images, tmp_path):
    encode(images, tmp_path / "one", crops=3, changes={"flip": True})
    source = TokenShardSource(tmp_path / "one")
    assert len(source) == 3 * COUNT
    columns, mirrored = set(), 0
    for i in range(len(source)):
        sample = source[i]
        assert sample["crop"] == i % 3
        pixels = pixels_of(images, sample["key"])
        views = {}
        for left in range(7):
            view = pixels[:, left : left + SIDE, 0]
            views[view[::FACTOR, ::FACTOR].tobytes()] = (left, False)
            views[view[:, ::-1][::FACTOR, ::FACTOR].tobytes()] = (left, True)
        left, flipped = views[sample["tokens"].astype(np.uint8).tobytes()]
        if sample["crop"] == 0:
            assert (left, flipped) == (3, False)
        else:
            columns.add(left)
            mirrored += flipped
    assert len(columns) >= 5
    assert 0 < mirrored < 2 * COUNT
    encode(images, tmp_path / "two", crops=3, seed=1, changes={"flip": True})
    other = TokenShardSource(tmp_path / "two")
    assert sum((source[i]["tokens"] != other[i]["tokens"]).any() for i in range(len(source))) > COUNT


def test_processes_share_the_shards_and_change_nothing(images, tmp_path):
    encode(images, tmp_path / "whole")
    assert encode(images, tmp_path / "parts", process_index=1, process_count=2) is None
    with pytest.raises(DataError, match="unfinished: 1 of 3 shards"):
        TokenShardSource(tmp_path / "parts")
    assert encode(images, tmp_path / "parts", process_index=0, process_count=2).complete
    same_files(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_an_interruption_changes_nothing(images, tmp_path, calls):
    class Interrupted(Corners):
        def encode(self, pixels):
            if len(self.shapes) == calls:
                raise KeyboardInterrupt
            return super().encode(pixels)

    encode(images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encode(images, tmp_path / "parts", tokenizer=Interrupted())
    again = Corners()
    encode(images, tmp_path / "parts", tokenizer=again)
    assert len(again.shapes) == 5 - 2 * (calls // 2)
    same_files(tmp_path / "whole", tmp_path / "parts")
    encode(images, tmp_path / "parts", tokenizer=(idle := Corners()))
    assert not idle.shapes


@pytest.mark.slow
def test_worker_processes_change_nothing(images, tmp_path):
    encode(images, tmp_path / "threads", crops=2)
    encode(images, tmp_path / "workers", crops=2, changes={"workers": 2})
    same_files(tmp_path / "threads", tmp_path / "workers")


def test_a_removed_shard_is_written_again(images, tmp_path):
    encode(images, tmp_path / "whole")
    encode(images, tmp_path / "parts")
    (tmp_path / "parts" / "shard-00001.array_record").unlink()
    encode(images, tmp_path / "parts", tokenizer=(again := Corners()))
    assert len(again.shapes) == 2
    same_files(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture
def damaged(images, tmp_path):
    root = tmp_path / "images"
    for file in images.rglob("*.png"):
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        (root / file.parent.name / file.name).write_bytes(file.read_bytes())
    for name in ("a/02.png", "b/09.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


def test_bad_images_are_left_out_and_counted(damaged, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "voken.data"):
        info = encode(damaged, tmp_path / "tokens", crops=2, changes={"max_bad_fraction": 0.2})
    assert (info.samples, info.records, info.bad) == (22, 18, 4)
    keys = [TokenShardSource(tmp_path / "tokens")[i]["key"] for i in range(18)]
    assert not {"a/02.png", "b/09.png"} & set(keys)
    assert len(keys) == 2 * len(set(keys))
    assert [record.getMessage().split(";")[1].split(" (bad")[0] for record in caplog.records] == [" left out"] * 2
    assert "02.png: " in caplog.text


def test_too_many_bad_images_stop_also_over_processes(damaged, tmp_path):
    too_many = r"found 2 of 11 images that cannot be decoded; data.max_bad_fraction 0.1 allows 1"
    with pytest.raises(TooManyBadImagesError, match=too_many):
        encode(damaged, tmp_path / "one", changes={"max_bad_fraction": 0.1})
    limited = {"max_bad_fraction": 0.1}
    encode(damaged, tmp_path / "two", process_index=0, process_count=3, changes=limited)
    encode(damaged, tmp_path / "two", process_index=1, process_count=3, changes=limited)
    with pytest.raises(TooManyBadImagesError, match=too_many):
        encode(damaged, tmp_path / "two", process_index=2, process_count=3, changes=limited)
    with pytest.raises(DataError, match="unfinished"):
        TokenShardSource(tmp_path / "two")
    assert encode(damaged, tmp_path / "two", changes={"max_bad_fraction": 0.2}).bad == 2


def test_settings_that_cannot_be_used(images, tmp_path):
    odd = data(images).model_copy(update={"image_size": 7})
    with pytest.raises(ValueError, match=r"image size 7 is no multiple of 2, the pixels per token of tiny: choose 6"):
        encode_dataset(Corners(), odd, tmp_path, Encoding(show=False))
    with pytest.raises(ValueError, match=r"data\.image_size 7 is not divisible by the 2 pixels per token"):
        encode(images, tmp_path, changes={"image_size": 7})
    videos = data(images).model_dump(mode="json") | {"train": {"kind": "video_folder", "path": str(images)}}
    with pytest.raises(DataError, match="the source gives videos, and tiny makes tokens of images"):
        encode_dataset(Corners(), DataConfig.model_validate_json(json.dumps(videos)), tmp_path, Encoding(show=False))
    with pytest.raises(ValueError, match=r"sub-tokens of 6 and 12 bits do not make the 8 bits"):
        encode(images, tmp_path, sub_tokens=(6, 12))
    with pytest.raises(ValueError, match=r"sub-tokens are bits of LFQ codes, tiny is ibq: leave them out"):
        vocabularies(validate(quantized_by("ibq"), "ibq"), (4, 4))
    with pytest.raises(ValueError, match="samples per shard is 0, expected at least 1"):
        Encoding(samples_per_shard=0)
    with pytest.raises(ValueError, match="process 2 of 2: expected 0 to count - 1"):
        Encoding(process_index=2, process_count=2)
    encode(images, tmp_path)
    with pytest.raises(DataError, match=r"holds tokens of another run(?s:.*)vocabularies: found \[256\], this run has"):
        encode(images, tmp_path, sub_tokens=(3, 5))
    with pytest.raises(DataError, match="tokenizer: found .* this run has"):
        encode(images, tmp_path, tokenizer=Corners(mark="2"))


def test_sub_tokens_are_low_and_high_bits(images, tmp_path):
    encode(images, tmp_path / "one")
    info = encode(images, tmp_path / "two", sub_tokens=(3, 5))
    assert info.vocabularies == (8, 32)
    whole, split = TokenShardSource(tmp_path / "one"), TokenShardSource(tmp_path / "two")
    for i in range(COUNT):
        tokens = split[i]["tokens"]
        assert tokens.shape == (16, 2)
        np.testing.assert_array_equal(join_ids(tokens, (8, 32)), whole[i]["tokens"][:, 0])
        np.testing.assert_array_equal(tokens[:, 0], whole[i]["tokens"][:, 0] & 7)


def test_the_configured_sub_tokens_are_the_default():
    quantizer = TINY["quantizer"] | {"token_bits": [2, 6]}
    assert vocabularies(validate(TINY | {"quantizer": quantizer}, "x"), None) == (4, 64)
    assert vocabularies(validate(TINY, "x"), None) == (256,)
    assert vocabularies(validate(quantized_by("ibq"), "x"), None) == (24,)


def test_shards_become_pictures(images, tmp_path):
    encode(images, tmp_path / "tokens", crops=2, sub_tokens=(3, 5))
    source = TokenShardSource(tmp_path / "tokens")
    assert decode_dataset(Corners(), source, tmp_path / "pictures", batch_size=4, show=False) == 2 * COUNT
    files = sorted(str(p.relative_to(tmp_path / "pictures")) for p in (tmp_path / "pictures").rglob("*.png"))
    assert files[:3] == ["a/00.png.crop1.png", "a/00.png.png", "a/02.png.crop1.png"]
    assert len(files) == 2 * COUNT
    for key in ("a/00.png", "b/09.png"):
        centre = pixels_of(images, key)[::FACTOR, 3 : 3 + SIDE : FACTOR, 0]
        picture = np.asarray(Image.open(tmp_path / "pictures" / f"{key}.png"))
        assert np.abs(picture[::FACTOR, ::FACTOR, 1].astype(int) - centre).max() <= 1
    with pytest.raises(DataError, match=r"holds tokens of tokenizer .* name its own checkpoint"):
        decode_dataset(Corners(mark="2"), source, tmp_path / "other", show=False)


PARSER = command.build_parser(command.find("encode"))


def run(options, load):
    """What the command does with these options and a tokenizer of its own."""
    options.process_index, options.process_count = 0, 1
    return command.guarded(lambda given: transfer(given, load), options)


def options(*arguments):
    return PARSER.parse_args(["--output", "x", *arguments])


def test_where_the_data_comes_from(images, tmp_path):
    config = validate(TINY, "tiny")
    own = data_config(options(), config)
    assert own.train == config.data.train, "photographs that lie nowhere else need no --data"
    assert own.image_size == config.data.image_size
    held_out = data_config(options("--split", "validation"), config)
    assert held_out.train == config.data.validation
    folder = data_config(options("--data", str(images), "--image-size", "32", "--resize", "cv2"), config)
    assert (folder.train.kind, folder.train.path) == ("image_folder", str(images))
    assert (folder.image_size, folder.resize) == (32, "cv2")
    (tmp_path / "list.txt").write_text("a/00.png\n")
    listed = data_config(options("--data", str(tmp_path / "list.txt"), "--set", "data.train.root=/r"), config)
    assert (listed.train.kind, listed.train.root) == ("list_file", "/r")
    (tmp_path / "data.yaml").write_text("train: {kind: skimage, region: all}\nresize: pil\n")
    section = data_config(options("--data", str(tmp_path / "data.yaml")), config)
    assert (section.train.region, section.resize, section.image_size) == ("all", "pil", 16)
    with pytest.raises(ConfigError, match=r"--set model.channels=8: only settings of the data"):
        data_config(options("--set", "model.channels=8"), config)
    (tmp_path / "data.yaml").write_text("data: {trian: {kind: skimage, region: all}}\n")
    with pytest.raises(ConfigError, match=r"unknown key data.trian; did you mean data.train"):
        data_config(options("--data", str(tmp_path / "data.yaml")), config)
    without = config.model_copy(update={"data": config.data.model_copy(update={"validation": None})})
    with pytest.raises(ConfigError, match="--split validation: the data section names no validation source"):
        data_config(options("--split", "validation"), without)


def test_the_command(images, tmp_path, capsys):
    output = str(tmp_path / "tokens")
    words = ["--checkpoint", "runs/tiny", "--data", str(images), "--output", output, "--image-size", "8"]
    assert run(PARSER.parse_args(words), lambda *_: Corners()) == 0
    assert "11 samples of 4 x 4 tokens of 256 codes by tiny, 2 classes" in capsys.readouterr().out
    assert TokenShardSource(output).info.tokenizer.reference == "runs/tiny"
    asked = []
    decode = ["--decode", output, "--output", str(tmp_path / "png"), "--max-images", "2"]
    assert run(PARSER.parse_args(decode), lambda *a: asked.append(a) or Corners()) == 2
    assert "from runs/tiny; what a folder says is not followed, so name" in capsys.readouterr().err
    decode += ["--checkpoint", "runs/tiny"]
    assert run(PARSER.parse_args(decode), lambda *a: asked.append(a) or Corners()) == 0
    ((asked_for,),) = asked
    assert (asked_for.checkpoint, asked_for.step, asked_for.weights, asked_for.checksums) == (
        "runs/tiny",
        "latest",
        None,
        True,
    )
    assert len(list((tmp_path / "png").rglob("*.png"))) == 2
    for arguments, message in (
        (["--output", output], "error: --checkpoint is missing"),
        ([*words, "--sub-tokens", "6"], "error: --sub-tokens 6: expected the bits of the two sub-tokens"),
        ([*words[:2], "--data", "nowhere/x.txt", *words[4:]], "error: no list file at nowhere/x.txt"),
        ([*words[:-1], "-8"], "data.image_size = -8 (int): input should be greater than 0"),
        ([*decode, "--batch-size", "0"], "error: --batch-size 0: expected at least 1"),
        ([*decode, "--max-images", "-1"], "error: --max-images -1: expected at least 1"),
        ([*words, "--step", "last"], "error: --step last: expected latest, best or a number"),
    ):
        assert run(PARSER.parse_args(arguments), lambda *_: Corners()) == 2
        assert message in capsys.readouterr().err

    def interrupted(*_):
        raise KeyboardInterrupt

    assert run(PARSER.parse_args(words), interrupted) == 130
    assert "run the same command to go on" in capsys.readouterr().err
