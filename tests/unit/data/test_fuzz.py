"""Mutated images, tars, indices and videos: decoded, or refused with an error that names them; nothing else."""

import io
import logging
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.support.tar_sets import encoded, write_tar
from tests.unit.data.test_video import write_video
from voken_common.config.schema.data import DataConfig, ImageNetTarConfig, TarConfig, TarSetConfig
from voken_common.data.decode import decode_image, open_image
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.pipeline import build_train_iterator
from voken_common.data.sources.imagenet_tar import ImageNetTar
from voken_common.data.sources.tar import TarSource
from voken_common.data.sources.video import ClipReader
from voken_common.data.storage.array_file import ArrayFileError, map_arrays
from voken_common.data.tar import prepare
from voken_common.data.tar.check import CheckOptions, check_tar, image_problem
from voken_common.data.tar.format import TarDamageError, walk_tar

LONGEST = 20.0
"""Seconds that no single case may take, on a machine however busy."""


def mutated(data, rng):
    """Some bytes flipped, cut out, doubled, put in, or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        kind, place = rng.integers(6), int(rng.integers(len(data) + 1))
        length = int(rng.integers(1, 64))
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place : place + length] = bytes(length)
        elif rng.random() < 0.3:
            del data[place:]
    return bytes(data)


def refusal(function, *args, **options):
    """(result, None), or (None, message) if it is refused as a data error."""
    try:
        return function(*args, **options), None
    except DataError as error:
        return None, str(error)


def images(rng):
    """One image of each format, mode and size that a set may hold."""
    pixels = Image.fromarray(rng.integers(0, 256, (24, 33, 3), dtype=np.uint8))
    forms = [("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {}), ("JPEG", "L", {})]
    forms += [("PNG", "RGB", {}), ("PNG", "P", {"transparency": b"\0\1"}), ("PNG", "I;16", {}), ("PNG", "LA", {})]
    forms += [("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {}), ("TIFF", "RGB", {})]
    forms += [("BMP", "RGB", {}), ("PPM", "RGB", {}), ("TIFF", "F", {})]
    for form, mode, options in forms:
        file = io.BytesIO()
        image = pixels.convert("L").convert("I").convert(mode) if mode == "I;16" else pixels.convert(mode)
        image.save(file, form, **options)
        yield file.getvalue()


def fuzz_images(count, seed):
    rng = np.random.default_rng(seed)
    originals = list(images(rng))
    decoded = refused = 0
    for case in range(count):
        data = mutated(originals[case % len(originals)], rng)
        start = time.monotonic()
        pixels, message = refusal(decode_image, data, name="folder/case.jpg")
        if message is None:
            assert pixels.ndim == 3
            assert (pixels.shape[2], pixels.dtype) == (3, np.uint8)
            decoded += 1
        else:
            assert message.startswith("folder/case.jpg: ")
            assert len(message) > len("folder/case.jpg: ")
            refused += 1
        _, message = refusal(open_image, data, name="x", exif_rotate=True, short_side=8)
        assert message is None or message.startswith("x: ")
        problem = image_problem(data, CheckOptions(min_side=16))
        assert problem is None or problem
        assert time.monotonic() - start < LONGEST
    assert decoded
    assert refused
    return decoded, refused


@pytest.mark.filterwarnings("ignore")
def test_mutated_images():
    fuzz_images(60, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_mutated_images():
    decoded, refused = fuzz_images(2000, 1)
    assert min(decoded, refused) > 200


def check_output(out, *, train):
    """Whatever became of a mutated set: no part of an output, and one that is there can be trained on."""
    assert not list(out.rglob("*.part"))
    index = out / "set.index"
    present = {index.exists(), (out / "set.samples.json").exists(), (out / "set.filter_keys.json").exists()}
    assert len(present) == 1
    if not index.exists():
        return 0
    config = TarConfig(sets=(TarSetConfig(index=str(index)),))
    source = TarSource(config)
    for i in range(len(source)):
        assert decode_image(source.read(i)[0]).shape[2] == 3
    if not train:
        return len(source)
    data = DataConfig(train=config, image_size=8, workers=0, max_bad_fraction=0)
    iterator = build_train_iterator(data, batch_size_per_process=2, seed=0)
    assert next(iterator)["image"].shape == (2, 8, 8, 3)
    iterator.close()
    return len(source)


def fuzz_tars(count, seed, tmp_path, capsys):
    rng = np.random.default_rng(seed)
    members = [(f"{i}.{'png' if i % 2 else 'jpg'}", encoded(i, "png" if i % 2 else "jpg")) for i in range(4)]
    members[2:2] = [("long" * 40 + ".png", encoded(9)), ("note.txt", b"text")]
    original = write_tar(tmp_path / "original.tar", members).read_bytes()
    sizes = set()
    for case in range(count):
        data = mutated(original, rng)
        start = time.monotonic()
        root, out = tmp_path / f"{case}" / "set", tmp_path / f"{case}"
        root.mkdir(parents=True)
        (root / "0.tar").write_bytes(data)
        status = prepare.main([str(root), "--output", str(out), "--workers", "0"])
        error = capsys.readouterr().err
        assert status == 0 or f"error: no good image in the 1 tars of {root}" in error
        sizes.add(check_output(out, train=case % 8 == 0))
        config = ImageNetTarConfig(path=str(root / "0.tar"), index=str(out / "positions.index"))
        _, message = refusal(ImageNetTar, config)
        assert message is None or str(root / "0.tar") in message
        assert time.monotonic() - start < LONGEST
    assert len(sizes) > 1


@pytest.mark.filterwarnings("ignore")
def test_mutated_tars(tmp_path, capsys):
    fuzz_tars(12, 2, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_mutated_tars(tmp_path, capsys):
    logging.getLogger("voken.data").setLevel(logging.ERROR)
    fuzz_tars(2000, 3, tmp_path, capsys)


def walked(data):
    """The members of a tar up to the damage, if there is any, and what it is."""
    members = []
    try:
        members.extend(walk_tar(io.BytesIO(data), len(data)))
    except TarDamageError as error:
        return members, str(error)
    return members, None


def test_mutated_tar_headers_never_lead_outside_the_file(tmp_path):
    """Headers whose checksum is right again after the mutation, so that the walk has to judge what they say."""
    rng = np.random.default_rng(4)
    original = write_tar(tmp_path / "a.tar", [("a.png", b"a" * 600), ("n" * 150, b"b" * 700), ("c", b"")]).read_bytes()
    reasons = set()
    for _ in range(400):
        data = bytearray(original)
        header = int(rng.integers(10)) * 512
        # Twice as often in the size and the type as elsewhere.
        for place in rng.choice([*range(512), *range(124, 136), *[156] * 50, *range(124, 136)], rng.integers(1, 4)):
            data[header + int(place)] = int(rng.choice([*b"01234567LKxgS", 128, 255, rng.integers(256)]))
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
        members, damage = walked(bytes(data))
        reasons.add(damage)
        for member in members:
            assert 512 <= member.start <= member.start + member.size <= len(data)
            assert zlib.crc32(data[member.start - 512 : member.start]) == member.header_crc
    assert None in reasons
    assert len(reasons) > 10


def read_all(config):
    source = TarSource(config)
    return [source.read(i)[0] for i in range(len(source))]


def fuzz_index(count, seed, tmp_path):
    """Mutated indices: refused with an error that names them, or nothing that matters has changed."""
    rng = np.random.default_rng(seed)
    root, index = tmp_path / "set", tmp_path / "set.index"
    write_tar(root / "0.tar", [(f"{i}.png", encoded(i)) for i in range(5)])
    assert prepare.main([str(root), "--output", str(tmp_path), "--workers", "0"]) == 0
    config = TarConfig(sets=(TarSetConfig(index=str(index)),))
    original, expected = index.read_bytes(), read_all(config)
    refused = 0
    for _ in range(count):
        index.write_bytes(mutated(original, rng))
        start = time.monotonic()
        images, message = refusal(read_all, config)
        if message is None:
            assert images == expected
        else:
            assert f"tar index {index}: " in message or f"since {index} was written" in message
            refused += 1
        assert time.monotonic() - start < LONGEST
    assert refused > count // 2


def test_mutated_indices(tmp_path):
    fuzz_index(60, 5, tmp_path)


@pytest.mark.slow
def test_two_thousand_mutated_indices(tmp_path):
    fuzz_index(2000, 6, tmp_path)


def fuzz_videos(count, seed, tmp_path):
    """Mutated videos: frames of bytes, or refused with an error that names the file."""
    rng = np.random.default_rng(seed)
    originals = [write_video(tmp_path / f"original.{suffix}", 20) for suffix in ("mp4", "avi", "webm")]
    originals = [(path.suffix, path.read_bytes()) for path in originals]
    decoded = refused = 0
    for case in range(count):
        suffix, data = originals[case % len(originals)]
        path = tmp_path / f"case{suffix}"
        path.write_bytes(mutated(data, rng))
        start = time.monotonic()
        frames, message = refusal(first_frames, str(path))
        if message is None:
            assert all((frame.ndim, frame.shape[2], frame.dtype) == (3, 3, np.uint8) for frame in frames)
            decoded += 1
        else:
            assert message.startswith(f"{path}: ")
            refused += 1
        assert time.monotonic() - start < LONGEST
    assert min(decoded, refused) > count // 10


def first_frames(path):
    reader = ClipReader()
    return reader.read(path, list(range(min(5, reader.frames(path)))))


def test_mutated_videos(tmp_path):
    fuzz_videos(60, 7, tmp_path)


@pytest.mark.slow
def test_two_thousand_mutated_videos(tmp_path):
    fuzz_videos(2000, 8, tmp_path)


def test_array_files_are_not_taken_at_their_word(tmp_path):
    path = tmp_path / "a"
    header = b'{"__metadata__": {"arrays": "{}"}, "x": {"dtype": "I64", "shape": [99], "data_offsets": [0, 792]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ArrayFileError, match="792 bytes of arrays expected, found 16"):
        map_arrays(path)
    path.write_bytes((1 << 40).to_bytes(8, "little") + header)
    with pytest.raises(ArrayFileError, match="no header"):
        map_arrays(path)


def test_a_bomb_is_an_error_and_not_a_want_of_memory(tmp_path):
    """A PNG that claims 60000 x 60000 pixels in a few bytes."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageDecodeError, match="exceeds limit of"):
        decode_image(bytes(data), name="bomb.png")
    path = write_tar(tmp_path / "a.tar", [("bomb.png", bytes(data))])
    report = check_tar(str(path), CheckOptions())
    assert "exceeds limit of" in report.bad["bomb.png"]
