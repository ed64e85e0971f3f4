"""What `Tokenizer` takes and gives, the same in both frameworks."""

import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image

from tests.support.tiny_tokenizers import tiny_pair
from voken_common.errors import UserError
from voken_common.pixels import from_uint8, to_uint8

ROOT = Path(__file__).resolve().parents[3]
FRAMEWORKS = ("jax", "torch")
SIDE = 8
BYTES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
FLOATS = from_uint8(BYTES)
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.fixture(params=FRAMEWORKS)
def tokenizer(request):
    return getattr(tiny_pair(), request.param)


def numpy(value):
    """A result as NumPy, images channels last."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.movedim(-3, -1) if value.is_floating_point() else value).numpy()
    return np.asarray(value)


@pytest.fixture(scope="module")
def expected():
    """Ids of both images."""
    return numpy(tiny_pair().torch.encode(torch.from_numpy(FLOATS).movedim(-1, 1)))


def forms(folder):
    """One batch in every form in which users have it."""
    files = [folder / f"{number}.png" for number in range(2)]
    for file, image in zip(files, BYTES, strict=True):
        Image.fromarray(image).save(file)
    first = torch.from_numpy(BYTES).movedim(-1, 1)
    return {
        "bytes": BYTES,
        "floats": FLOATS,
        "float64": FLOATS.astype(np.float64),
        "jax bytes": jnp.asarray(BYTES),
        "jax floats": jnp.asarray(FLOATS),
        "tensor of bytes": first,
        "tensor of floats": torch.from_numpy(FLOATS).movedim(-1, 1),
        "list of paths": files,
        "list of names": [str(file) for file in files],
        "list of encoded bytes": [file.read_bytes() for file in files],
        "list of PIL images": [Image.open(file) for file in files],
        "list of arrays": list(BYTES),
        "tuple of tensors": tuple(first),
        "mixture": [files[0], FLOATS[1]],
    }


def test_every_form_of_a_batch_gives_the_same_ids(tokenizer, expected, tmp_path):
    for name, images in forms(tmp_path).items():
        ids = tokenizer.encode(images)
        assert str(ids.dtype).endswith("int32"), name
        np.testing.assert_array_equal(numpy(ids), expected, err_msg=name)


def test_one_image_gives_one_grid_and_back(tokenizer, expected, tmp_path):
    many = forms(tmp_path)
    ones = [
        BYTES[0],
        FLOATS[0],
        jnp.asarray(FLOATS[0]),
        many["tensor of bytes"][0],
        many["list of paths"][0],
        many["list of names"][0],
        many["list of PIL images"][0],
    ]
    for one in ones:
        np.testing.assert_array_equal(numpy(tokenizer.encode(one)), expected[0])
    image = tokenizer.decode(expected[0])
    np.testing.assert_allclose(numpy(image), numpy(tokenizer.decode(expected))[0], atol=2e-5)
    assert tokenizer.reconstruct(BYTES[0]).shape == tuple(image.shape)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_ids_of_any_integer_type(tokenizer, dtype):
    ids = np.array([[[0, 1], [63, 127]], [[2, 100], [5, 9]]])
    decoded, codes = numpy(tokenizer.decode(ids)), tokenizer.codes(ids)
    for given_ids in (
        ids.astype(dtype),
        torch.from_numpy(ids.astype(dtype)),
        jnp.asarray(ids.astype(dtype)),
        ids.tolist(),
    ):
        np.testing.assert_array_equal(numpy(tokenizer.decode(given_ids)), decoded)
        np.testing.assert_array_equal(np.asarray(tokenizer.codes(given_ids)), np.asarray(codes))


def test_both_frameworks_decode_alike(expected):
    pair = tiny_pair()
    np.testing.assert_allclose(numpy(pair.jax.decode(expected)), numpy(pair.torch.decode(expected)), atol=2e-5)


@settings(max_examples=12)
@given(
    batch=st.none() | st.integers(0, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kind=st.sampled_from(["uint8", "float16", "float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_shapes_and_types(batch, height, width, kind, seed):
    """In PyTorch, which compiles nothing per shape; what is checked is shared."""
    tokenizer = tiny_pair().torch
    shape = (height, width, 3) if batch is None else (batch, height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    images = pixels if kind == "uint8" else from_uint8(pixels).astype(kind)
    again = tokenizer.reconstruct(images)
    assert numpy(again).shape == shape
    grid = (*shape[:-3], height // 2, width // 2)
    if min(height, width) < 2:
        with pytest.raises(UserError, match="smaller than one token"):
            tokenizer.encode(images, crop=True)
        return
    ids = tokenizer.encode(images, crop=True)
    assert tuple(ids.shape) == grid
    if height % 2 or width % 2:
        with pytest.raises(UserError, match=rf"images are {height} x {width}: both sides must be multiples of 2"):
            tokenizer.encode(images)
    assert numpy(tokenizer.decode(ids)).shape == (*shape[:-3], height // 2 * 2, width // 2 * 2, 3)


def test_cutting_the_middle(tokenizer, expected):
    framed = np.zeros((SIDE + 1, SIDE + 1, 3), np.uint8)
    framed[:SIDE, :SIDE] = BYTES[0]
    np.testing.assert_array_equal(numpy(tokenizer.encode(framed, crop=True)), expected[0])


def test_none_gives_none(tokenizer):
    assert tokenizer.encode(np.zeros((0, 8, 8, 3), np.float32)).shape == (0, 4, 4)
    assert numpy(tokenizer.decode(np.zeros((0, 4, 4), np.int32))).shape == (0, 8, 8, 3)
    assert tokenizer.decode(np.zeros((0, 4, 4), np.int32)).to_pil() == []


def nan_in(images):
    images = images.copy()
    images[1, 2, 3, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            BYTES.astype(np.float32),
            r"images run from [0-9]+ to 255, expected floats in \[-1, 1\]: bytes are taken as they are",
        ),
        (
            FLOATS * 1.2,
            r"images run from -1.[0-9]+ to 1.2, expected floats in .*: clip what a resize overshoots",
        ),
        (nan_in(FLOATS), "images hold NaN or infinite values"),
        (FLOATS * np.inf, "images hold NaN or infinite values"),
        (BYTES.astype(np.int64), r"images are (torch\.)?int64, expected uint8 or floats in \[-1, 1\]"),
        (BYTES > 3, "images are (torch.)?bool, expected uint8 or floats"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:Explicitly requested dtype")
def test_values_that_cannot_be(tokenizer, images, message):
    tensor = torch.from_numpy(images).movedim(-1, 1)
    for form in (images, images[1], tensor, [images[0], images[1]]):
        with pytest.raises(UserError, match=message):
            tokenizer.encode(form)
    if images.dtype != np.int64:
        with pytest.raises(UserError, match=message):
            tokenizer.encode(jnp.asarray(images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BYTES[..., :1], r"images have shape \(2, 8, 8, 1\), expected \(H, W, 3\) or \(B, H, W, 3\), channels last"),
        (BYTES[0, 0], r"images have shape \(8, 3\), expected"),
        (np.zeros((3, 8, 8), np.uint8), r"images have shape \(3, 8, 8\), expected \(H, W, 3\)"),
        (
            torch.from_numpy(BYTES),
            r"images have shape \(2, 8, 8, 3\), expected \(3, H, W\) or \(B, 3, H, W\), channels fir",
        ),
        ([BYTES[0], BYTES[1, :4]], r"a list of images of several sizes \(4 x 8, 8 x 8\): encode them one by one"),
        ([BYTES, BYTES], r"a list holds single images, found one entry of shape \(2, 8, 8, 3\): stack them"),
        ([], "an empty list of images has no size"),
        ([1, 2], "a list of numbers is no list of images"),
        ("nowhere.png", "nowhere.png: no such file"),
        (Path(__file__), "test_api.py: not an image in a known format"),
    ],
)
def test_shapes_and_files_that_cannot_be(tokenizer, images, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(images)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((1, 2, 2)), "ids are float64 of shape"),
        (np.zeros((2,), np.int32), r"ids are int32 of shape \(2,\), expected integers \(B, h, w\) or \(h, w\)"),
        (np.full((2, 2), -1), "ids run from -1 to -1, expected 0 to 255: they belong to another tokenizer"),
        (np.full((2, 2), 256, np.uint16), "ids run from 256 to 256"),
        (np.ones((2, 2), bool), "ids are bool"),
    ],
)
def test_ids_that_cannot_be(tokenizer, ids, message):
    for form in (ids, torch.from_numpy(ids)):
        with pytest.raises(UserError, match=message):
            tokenizer.decode(form)


def test_pictures_and_files(tokenizer, expected, tmp_path):
    images = tokenizer.decode(expected)
    pixels = to_uint8(numpy(images))
    pictures = images.to_pil()
    assert [picture.size for picture in pictures] == [(SIDE, SIDE)] * 2
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), pixels)
    files = images.save(tmp_path / "many")
    assert files == [tmp_path / "many" / "00000.png", tmp_path / "many" / "00001.png"]
    one = tokenizer.decode(expected[1])
    assert one.save(tmp_path / "one.png") == [tmp_path / "one.png"]
    for file, picture in ((files[1], pixels[1]), (tmp_path / "one.png", to_uint8(numpy(one)))):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), picture)
    assert one.to_pil().size == (SIDE, SIDE)
    with pytest.raises(UserError, match=r"these are 2 images: name a folder"):
        images.save(tmp_path / "both.png")
    with pytest.raises(UserError, match="the suffix of an image file is expected"):
        one.save(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one.png"]


def test_images_are_arrays(expected):
    pair = tiny_pair()
    images, tensor = pair.jax.decode(expected), pair.torch.decode(expected)
    np.testing.assert_array_equal(jnp.mean(images), jnp.mean(images.array))
    np.testing.assert_array_equal((1 + images) / 2 - images, (1 + images.array) / 2 - images.array)
    assert images[0].shape == images.shape[1:] == (SIDE, SIDE, 3)
    assert len(images) == 2
    np.testing.assert_array_equal(pair.jax.encode(images), pair.jax.encode(images.array))
    assert isinstance(tensor, torch.Tensor)
    assert type(tensor + 1) is type(tensor[0]) is torch.Tensor
    torch.testing.assert_close(pair.torch.encode(tensor), pair.torch.encode(tensor + 0))


def test_what_a_tokenizer_says_about_itself(tokenizer):
    assert (tokenizer.downsampling, tokenizer.codebook_size, tokenizer.config.name) == (2, 256, "tiny")
    shown = str(tokenizer)
    for part in (
        "Tokenizer\n",
        "model       tiny: magvit2, lfq with codes of 8 bits",
        "codes       256, one a token of 2 x 2 pixels",
        "16 x 16, which are 8 x 8 ids",
        "precision   float32\n",
        "source      seeded weights",
    ):
        assert part in shown
    assert tokenizer.from_pretrained.__func__ is tokenizer.load.__func__


def test_in_pytorch_it_is_a_frozen_module(expected):
    tokenizer = tiny_pair().torch
    outer = torch.nn.ModuleDict({"tokenizer": tokenizer}).train()
    assert not tokenizer.training
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in outer.parameters())
    assert tokenizer.weights.keys() == {name.removeprefix("network.") for name in tokenizer.state_dict()}
    assert tokenizer.device == torch.device("cpu")
    moved = tiny_pair.__wrapped__().torch.to("meta")
    assert moved.device == moved.runtime.device == torch.device("meta")
    double = tiny_pair.__wrapped__().torch.double()
    assert double.decode(expected).dtype == torch.float64
    assert "precision   float64" in str(double)
    torch.testing.assert_close(tokenizer(BYTES), tokenizer.reconstruct(BYTES))


@pytest.mark.parametrize(("own", "other"), [("jax", "torch"), ("torch", "jax")])
def test_the_front_door_is_quick_and_needs_one_framework(own, other):
    code = (
        "import sys, time\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == '{other}': raise ImportError('blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "begun = time.perf_counter()\n"
        f"import voken_{own}\n"
        "seconds = time.perf_counter() - begun\n"
        f"assert '{own}' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert seconds < 1, seconds\n"
        f"from voken_{own} import Generator, Tokenizer\n"
        "print(Tokenizer.__module__, Generator.__module__, sorted(dir(voken_" + own + "))[-1] >= '_')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == [f"voken_{own}.tokenizer.api", f"voken_{own}.generator.api"]
