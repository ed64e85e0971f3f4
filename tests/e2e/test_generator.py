"""The public Generator and the sample command in both frameworks, on seeded weights in one .safetensors file."""

import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.tiny import TINY
from tests.support.tiny_generator import ADAPTIVE, CLASSES, FACTORIZED, GRID, generator_mapping
from voken_common.atomic_write import replacing
from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
from voken_common.checkpoints.steps import Meta
from voken_common.config.loading import validate_any
from voken_common.config.schema.sampling import Sampling
from voken_common.data.tokens.format import join_ids
from voken_common.errors import CheckpointError
from voken_common.pixels import to_uint8
from voken_common.sampling.requests import seed_of
from voken_jax import sample as jax_sample
from voken_jax.convert import main as convert
from voken_jax.generator.api import Generator as JaxGenerator
from voken_jax.generator.validation import GeneratorValidator as JaxValidator
from voken_jax.models.stacked import stack_layers
from voken_jax.parallel.sharding import make_mesh
from voken_jax.tokenizer.api import Tokenizer
from voken_torch import sample as torch_sample
from voken_torch.checkpoints.torch import Checkpoints
from voken_torch.generator.api import Generator as TorchGenerator
from voken_torch.generator.step import create_generator_state
from voken_torch.generator.validation import GeneratorValidator as TorchValidator
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.generator import build_generator
from voken_torch.models.layers import Policy

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FAMILIES = {"adaptive": ADAPTIVE, "factorized": FACTORIZED}
GENERATORS = {"jax": JaxGenerator, "torch": TorchGenerator}
COMMANDS = {"jax": jax_sample.main, "torch": lambda arguments: torch_sample.main([*arguments, "--device", "cpu"])}
GREEDY = {
    kind: Sampling(*(((v,) * parts) for v in (1.5, 0.0, 0, 1.0))) for kind, parts in zip(FAMILIES, (1, 2), strict=True)
}


def save(path, config, network):
    """Seeded weights of a torch network."""
    random = np.random.default_rng(3)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    with replacing(path) as file:
        write_safetensors(file, weights, Meta(config, 5, {}), "raw")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both generators, and the tokenizer whose 256 codes they predict."""
    folder = tmp_path_factory.mktemp("generators")
    tokenizer = validate_any(TINY, "tiny")
    save(folder / "tokenizer.safetensors", tokenizer, Autoencoder(tokenizer.model, tokenizer.quantizer, Policy()))
    for name, kind in FAMILIES.items():
        config = validate_any(generator_mapping(folder, kind, tokenizer="tokenizer.safetensors"), name)
        save(folder / f"{name}.safetensors", config, build_generator(config.model))
    return folder


@pytest.fixture(scope="module", params=["jax", "torch"])
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def adaptive(framework, folder):
    return GENERATORS[framework].load(folder / "adaptive.safetensors")


def pixels(samples, framework):
    images = np.asarray(samples.images)
    return images if framework == "jax" else images.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_frameworks_make_the_same_of_a_checkpoint(folder, family):
    found = {}
    for name, kind in GENERATORS.items():
        samples = kind.load(folder / f"{family}.safetensors").sample([0, 2, 1], sampling=GREEDY[family])
        assert samples.ids.shape == (3, GRID, GRID)
        found[name] = np.asarray(samples.ids), pixels(samples, name)
    np.testing.assert_array_equal(found["jax"][0], found["torch"][0])
    np.testing.assert_allclose(found["jax"][1], found["torch"][1], atol=1e-3)
    images = Tokenizer.load(folder / "tokenizer.safetensors").decode(found["jax"][0])
    np.testing.assert_array_equal(found["jax"][1], images)


def test_seeds(adaptive):
    ids = np.asarray(adaptive.sample([1, 1, 1], seeds=[8, 9, 8], images=False).ids)
    assert (ids[0] == ids[2]).all()
    assert (ids[0] != ids[1]).any()
    common = np.asarray(adaptive.sample([1, 1], seed=4, images=False).ids)
    own = adaptive.sample([1, 1], seeds=[seed_of(4, 0), seed_of(4, 1)], images=False)
    np.testing.assert_array_equal(common, np.asarray(own.ids))
    assert own.images is None


def test_configuration_says_how_to_draw(adaptive):
    """Its guidance is 2: the scale 1 gives other tokens, from a batch of half the size."""
    drawn = np.asarray(adaptive.sample([0, 1], images=False).ids)
    same = adaptive.sample([0, 1], sampling=Sampling((2.0,), (1.0,), (0,), (1.0,)), images=False)
    other = adaptive.sample([0, 1], sampling=Sampling((1.0,), (1.0,), (0,), (1.0,)), images=False)
    np.testing.assert_array_equal(drawn, np.asarray(same.ids))
    assert (drawn != np.asarray(other.ids)).any()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 3], {}, "labels run from 0 to 3, this generator has classes 0 to 2"),
        ([0.5], {}, r"labels are float64 of shape \(1,\), expected a vector of classes"),
        ([], {}, r"shape \(0,\), expected a vector"),
        ([0], {"seeds": [1, 2]}, "2 seeds for 1 labels: expected one a sample"),
        ([0], {"seed": -1}, "seed -1: expected 0 to 4294967295"),
        (
            [0],
            {"sampling": Sampling((1.0, 2.0))},
            r"scale has 2 value\(s\) \[1.0, 2.0\]; tiny_generator predicts 1",
        ),
        ([0], {"sampling": Sampling(top_p=(0.0,))}, "sampling.top_p.0 is 0.0: input should be greater than 0"),
    ],
)
def test_what_cannot_be_sampled(adaptive, labels, options, message):
    with pytest.raises(ValueError, match=message):
        adaptive.sample(labels, images=False, **options)


def test_without_its_tokenizer_a_generator_makes_tokens_alone(framework, folder, tmp_path):
    file = tmp_path / "moved.safetensors"
    file.write_bytes((folder / "adaptive.safetensors").read_bytes())
    moved = GENERATORS[framework].load(file)
    assert moved.sample([0], images=False).ids.shape == (1, GRID, GRID)
    with pytest.raises(CheckpointError, match="is a generator whose tokenizer is tokenizer.safetensors: found"):
        moved.sample([0])
    named = GENERATORS[framework].load(file, folder / "tokenizer.safetensors")
    assert named.sample([0]).images.shape in ((1, 16, 16, 3), (1, 3, 16, 16))


def test_a_tokenizer_or_checkpoint_of_another_kind(framework, folder, tmp_path):
    config = validate_any(generator_mapping(folder, {"network": "adaptive", "vocabularies": [100]}), "other")
    save(tmp_path / "other.safetensors", config, build_generator(config.model))
    load = GENERATORS[framework].load
    with pytest.raises(CheckpointError, match="tokenizer tiny has 256 codes, generator tiny_generator predicts 100"):
        load(tmp_path / "other.safetensors", folder / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match="generator tiny_generator names no tokenizer, so that it makes tokens"):
        load(tmp_path / "other.safetensors").sample([0])
    with pytest.raises(CheckpointError, match="found the checkpoint of tokenizer tiny, expected one of a generator"):
        load(folder / "tokenizer.safetensors")


def test_averages_are_taken_from_a_work_directory(folder, tmp_path):
    """Both kinds of work directory, the JAX one by conversion."""
    mapping = generator_mapping(folder, tokenizer=str(folder / "tokenizer.safetensors"), optimizer={"ema_decay": 0.9})
    config = validate_any(mapping, "averaged")
    state = create_generator_state(config)
    for name, sign in (("generator", 1), ("generator_ema", -1)):
        for number, tensor in enumerate(getattr(state, name).values()):
            torch.nn.init.normal_(
                tensor.detach(), std=0.3, generator=torch.Generator().manual_seed(10 * number + sign + 1)
            )

    class AtStart:
        def get_state(self):
            return {}

    Checkpoints(tmp_path / "run", config.checkpoint).save(state, config, AtStart(), {})
    assert convert([str(tmp_path / "run" / "checkpoints" / "0.pt"), str(tmp_path / "jax")]) == 0
    found = {}
    for weights in (None, "ema", "raw"):
        ours = TorchGenerator.load(tmp_path / "run", weights=weights)
        theirs = JaxGenerator.load(tmp_path / "jax", weights=weights)
        found[weights] = np.asarray(ours.sample([0, 1, 2], sampling=GREEDY["adaptive"], images=False).ids)
        other = theirs.sample([0, 1, 2], sampling=GREEDY["adaptive"], images=False).ids
        np.testing.assert_array_equal(found[weights], np.asarray(other))
    np.testing.assert_array_equal(found[None], found["ema"])
    assert (found["ema"] != found["raw"]).any()


def run(framework, folder, *arguments, family="adaptive"):
    checkpoint = ("--checkpoint", str(folder / f"{family}.safetensors"), "--batch-size", "4")
    return COMMANDS[framework]([*checkpoint, *map(str, arguments)])


def test_pictures_per_class_and_a_grid(framework, folder, tmp_path, adaptive, capsys):
    arguments = ("--classes", "2,0", "--num-per-class", 3, "--output", tmp_path / "out", "--seed", 6)
    assert run(framework, folder, *arguments) == 0
    assert "6 pictures, and grid.png" in capsys.readouterr().out
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/class_*/*.png"))
    assert files == [f"class_{c:04d}/{i:05d}.png" for c in (0, 2) for i in range(3)]
    samples = adaptive.sample([2, 2, 2], seeds=[seed_of(6, 2, i) for i in range(3)])
    for number, expected in enumerate(to_uint8(pixels(samples, framework))):
        found = np.asarray(Image.open(tmp_path / f"out/class_0002/{number:05d}.png"))
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert Image.open(tmp_path / "out/grid.png").size == (3 * 18 - 2, 2 * 18 - 2)
    before = (tmp_path / "out/class_0002/00001.png").stat().st_mtime_ns
    assert run(framework, folder, *arguments, "--num-per-class", 4) == 0
    assert (tmp_path / "out/class_0002/00001.png").stat().st_mtime_ns == before, "what is there is not drawn again"
    assert (tmp_path / "out/class_0002/00003.png").is_file()
    assert run(framework, folder, *arguments, "--scale", 1) == 2
    assert "holds pictures made with other settings (sampling; sampling was" in capsys.readouterr().err


def test_the_evaluators_file(framework, folder, tmp_path, adaptive, capsys):
    arguments = ("--classes", "all", "--num-per-class", 3, "--npz", tmp_path / "s.npz", "--temperature", 1.5)
    assert run(framework, folder, *arguments, "--process-index", 1, "--process-count", 2) == 0
    assert "those of others are not" in capsys.readouterr().out
    assert run(framework, folder, *arguments, "--process-index", 0, "--process-count", 2) == 0
    assert "9 images of 16 x 16 pixels" in capsys.readouterr().out
    with np.load(tmp_path / "s.npz") as archive:
        images = archive["arr_0"]
    assert (images.shape, images.dtype) == ((9, 16, 16, 3), np.uint8)
    labels, numbers = np.repeat(np.arange(CLASSES), 3), np.tile(np.arange(3), CLASSES)
    seeds = [seed_of(0, int(label), int(number)) for label, number in zip(labels, numbers, strict=True)]
    samples = adaptive.sample(labels, seeds=seeds, sampling=Sampling((2.0,), (1.5,), (0,), (1.0,)))
    expected = to_uint8(pixels(samples, framework))[np.random.default_rng(0).permutation(9)]
    assert np.abs(images.astype(int) - expected).max() <= 1
    assert json.loads((tmp_path / "s.npz.json").read_text())["sampling"]["temperature"] == [1.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "0"], "one of --output DIR (PNG files) and --npz FILE (one array) is needed"),
        (["--classes", "0", "--output", "o", "--npz", "n"], "one of --output DIR"),
        (["--classes", "0-3", "--output", "o"], "--classes 0-3: 0-3 is not within the classes 0 to 2"),
        (["--classes", "2-1", "--output", "o"], "--classes 2-1: 2-1 is not within the classes 0 to 2"),
        (["--classes", "0,dog", "--output", "o"], "'dog' is no class; expected numbers and ranges such as 207,360"),
        (["--classes", "0", "--output", "o", "--num-per-class", "0"], "--num-per-class 0: expected at least 1"),
        (["--classes", "0", "--output", "o", "--top-k", "x"], "--top-k x: expected whole numbers, one per sub-"),
        (["--classes", "0", "--output", "o", "--top-p", ""], "--top-p : expected numbers, one per sub-token"),
        (
            ["--classes", "0", "--output", "o", "--temperature", "nan"],
            "sampling.temperature.0 is nan: input should be a",
        ),
        (["--classes", "0", "--output", "o", "--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["--classes", "0", "--output", "o", "--seed", "-1"], "--seed -1: expected at least 0"),
        (["--classes", "0", "--output", "o", "--process-count", "0"], "--process-count 0: expected at least 1"),
        (["--classes", "0", "--output", "o", "--process-index", "1"], "--process-index 1 of --process-count 1: "),
        (["--classes", "0", "--output", "o", "--tokenizer", "no"], "no is no file or folder here and no published"),
        (["--classes", "0", "--output", "o", "--step", "last"], "--step last: expected latest, best or a number"),
        (["--classes", "0", "--output", __file__], "test_generator.py is a file, expected a folder"),
        (["--classes", "0", "--output", "o", "--scale", "1,2"], "scale has 2 value(s) [1.0, 2.0]"),
        (["--classes", "0", "--output", "o", "--preset", "imagenet_conditional_llama_B"], "several models: say"),
        (["--classes", "0", "--output", "o", "--preset", "imagenet_ibqgan_1024"], "that is an image tokenizer"),
        (["--classes", "0", "--output", "o", "--preset", "Open-MAGVIT2/imagenet_conditional_llama_B"], "needs one for"),
    ],
)
def test_commands_that_cannot_be(folder, capsys, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("torch", folder, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_presets_are_the_published_settings(folder, tmp_path):
    arguments = ("--classes", "1", "--num-per-class", 1, "--output", tmp_path / "o", "--guidance", "linear")
    preset = ("--preset", "Open-MAGVIT2/imagenet_conditional_llama_L", "--top-k", "0,3")
    assert run("torch", folder, *arguments, *preset, family="factorized") == 0
    assert json.loads((tmp_path / "o/sampling.json").read_text())["sampling"] == {
        "scale": [1.9, 1.9],
        "temperature": [1.1, 1.0],
        "top_k": [0, 3],
        "top_p": [1.0, 1.0],
        "guidance": "linear",
    }


def test_one_compiled_program_per_size(folder):
    generator = JaxGenerator.load(folder / "adaptive.safetensors")
    for labels in ([0, 1], [2, 2]):
        generator.sample(labels, seed=labels[0], images=False)
    assert generator._generate._cache_size() == 1
    with jax.checking_leaks():
        generator.sample([0, 1], images=False)


def test_pictures_of_a_run_can_be_drawn_again(adaptive, framework):
    labels, config = np.array([0, 2], np.int32), adaptive.config
    if framework == "jax":
        validator = JaxValidator(config, adaptive._network, make_mesh(config.mesh))
        shown = validator.sample(stack_layers(adaptive._weights), labels)
    else:
        shown = TorchValidator(config, adaptive.runtime).sample(adaptive.network, labels)
    drawn = np.asarray(adaptive.sample(labels, seed=config.seed, images=False).ids)
    np.testing.assert_array_equal(join_ids(shown, config.model.vocabularies).reshape(drawn.shape), drawn)
