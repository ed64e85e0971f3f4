"""Every published image tokenizer: its config builds, and its weights have the published names and shapes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.support.golden_cases import torch_shape
from voken_common.checkpoints import weight_names as names
from voken_common.config.loading import load_any_config, load_config
from voken_common.published.models import MODELS, find, has_config
from voken_jax.models.functional import Network
from voken_jax.models.generator import build_generator
from voken_jax.models.layers import Policy
from voken_jax.models.lpips import LPIPS
from voken_jax.tokenizer.state import build_players

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = ROOT / "tests" / "manifests"
GENERATORS = [model for model in MODELS if model.family == "generator"]
TOKENIZERS = [model for model in MODELS if model.family != "generator" and has_config(model)]
RECIPES = [model for model in TOKENIZERS if model.family == "image tokenizer" and model.project != "Emu3.5"]
EMA_BOOKKEEPING = {"model_ema.decay", "model_ema.num_updates"}


def manifest_of(model):
    """{torch key: shape} of the published checkpoint."""
    return json.loads((MANIFESTS / model.manifest).read_text())


def in_torch_terms(leaves, prefix=""):
    """{torch key: torch shape} of our weights."""
    return {prefix + names.to_torch_name(p): list(torch_shape(p, leaf.shape)) for p, leaf in leaves.items()}


def in_jax_terms(manifest):
    """{JAX path: something of the JAX shape} of published weights."""
    return names.to_jax({key: np.broadcast_to(np.int8(0), shape) for key, shape in manifest.items()})


def everything(network):
    """Parameters and buffers."""
    return network.parameters | network.buffers


def prefixed(leaves, prefix):
    """The same under longer names."""
    return {prefix + path: leaf for path, leaf in leaves.items()}


@pytest.fixture(scope="module")
def perceptual():
    return Network(lambda rngs: LPIPS(policy=Policy(), rngs=rngs))


def test_every_published_model_has_a_configuration():
    folders = (ROOT / "configs" / folder for folder in ("open_magvit2", "ibq", "emu3_5"))
    configs = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.iterdir()}
    assert {model.config for model in TOKENIZERS + GENERATORS} == configs
    assert len(GENERATORS) == 7


@pytest.mark.parametrize("model", GENERATORS, ids=lambda model: model.name)
def test_generators_have_the_published_names_shapes_and_sizes(model):
    config = load_any_config(ROOT / model.config)
    assert config.name == model.name
    network = Network(lambda rngs: build_generator(config.model, policy=Policy(), rngs=rngs))
    prefix = "transformer."
    published = {key: shape for key, shape in manifest_of(model).items() if key.startswith(prefix)}
    assert in_torch_terms(network.parameters, prefix) == published
    assert not network.buffers
    count = sum(math.prod(leaf.shape) for leaf in network.parameters.values())
    assert count == pytest.approx(model.parameters * 1e6, abs=6e4)


@pytest.mark.parametrize("model", TOKENIZERS, ids=lambda model: model.name)
def test_weights_have_the_published_names_and_shapes(model, perceptual):
    config = load_config(ROOT / model.config)
    assert config.name == model.name
    players = build_players(config)
    trained = in_torch_terms(players.autoencoder.parameters)
    trained |= in_torch_terms(players.discriminator.parameters, names.DISCRIMINATOR_PREFIX)
    fixed = in_torch_terms(players.discriminator.buffers, names.DISCRIMINATOR_PREFIX)
    fixed |= in_torch_terms(perceptual.parameters | perceptual.buffers, names.PERCEPTUAL_PREFIX)
    assert not players.autoencoder.buffers
    averages = {names.ema_name(key): shape for key, shape in trained.items()}
    assert len(averages) == len(trained)
    manifest = manifest_of(model)
    if not model.averages:
        assert in_torch_terms(players.autoencoder.parameters) == manifest
        return
    bookkeeping = {key: manifest.pop(key) for key in EMA_BOOKKEEPING}
    assert all(shape == [] for shape in bookkeeping.values())
    assert trained | fixed | averages == manifest

    published = {key: shape for key, shape in manifest.items() if not key.startswith(names.EMA_PREFIX)}
    ours = players.autoencoder.parameters | prefixed(everything(players.discriminator), names.DISCRIMINATOR_PREFIX)
    ours |= prefixed(everything(perceptual), names.PERCEPTUAL_PREFIX)
    names.require_same_shapes(in_jax_terms(published), ours, model.name)


@pytest.mark.parametrize("model", RECIPES, ids=lambda model: model.name)
def test_recipe(model):
    config = load_config(ROOT / model.config)
    quantizer, training, schedule = config.quantizer, config.training, config.optimizer.schedule
    assert training.batch_size == 256
    assert (config.optimizer.learning_rate, config.optimizer.betas) == (1e-4, (0.5, 0.9))
    assert config.data.image_size == config.model.resolution == (128 if "gan_128" in model.name else 256)
    pretrained = model.name.startswith("pretrain")
    assert config.data.resize == ("cv2" if model.name.startswith("imagenet_ibqgan") else "pil")
    assert not config.data.flip
    assert not config.data.exif_rotate
    assert config.data.train.kind == ("tar" if pretrained else "image_folder")
    assert pretrained or config.data.train.exclude == ("n06596364_9591.JPEG",)
    assert config.adversarial.generator_weight == 0.1
    assert config.adversarial.start_step == 0
    lecam = {"imagenet_lfqgan_128_L": 0.01, "imagenet_lfqgan_128_B": 0.005, "imagenet_lfqgan_256_B": 0.005}
    assert config.adversarial.lecam_weight == lecam.get(model.name, 0.05)
    if quantizer.kind == "lfq":
        assert quantizer.codebook_size == (2**14 if "16384" in model.name else 2**18)
        assert (quantizer.entropy_weight, quantizer.commitment_weight) == (0.1, 0.25)
    else:
        assert quantizer.codebook_size == int(model.name.rsplit("_", 1)[1])
        weights = (quantizer.quantizer_weight, quantizer.entropy_weight, quantizer.beta, quantizer.temperature)
        assert weights == (1.0, 0.05, 0.25, 0.01)
    length = {
        "imagenet_lfqgan_256_L": (270, (200, 250)),
        "imagenet_lfqgan_128_L": (350, (250, 300)),
        "imagenet_ibqgan_8192": (280, (250,)),
        "imagenet_lfqgan_256_B": (150, ()),
        "imagenet_lfqgan_128_B": (150, ()),
    }
    epochs, drops = (None, ()) if pretrained else length.get(model.name, (330, (250, 300)))
    assert (training.epochs, schedule.drop_epochs) == (epochs, drops)
    assert training.steps == (1_500_000 if pretrained else None)
    blur = model.name == "pretrain_lfqgan_256_16384"
    assert config.discriminator.kind == ("blur" if blur else "patchgan")
    assert schedule.kind == ("cos" if blur else "constant")
    assert schedule.drop_steps == ((800_000, 1_000_000) if model.name == "pretrain_lfqgan_256_262144" else ())


def test_recipe_of_the_video_tokenizer():
    model = find("ucf101_lfqgan_128_L")
    config = load_config(ROOT / model.config)
    assert config.training.batch_size == 128
    assert (config.training.epochs, config.training.steps) == (2000, None)
    assert (config.optimizer.learning_rate, config.optimizer.betas) == (1e-4, (0.5, 0.9))
    schedule = config.optimizer.schedule
    assert (schedule.kind, schedule.warmup_epochs) == ("cos", 2)
    assert (schedule.start_factor, schedule.end_factor) == (0.0, 0.01)
    assert (config.adversarial.generator_weight, config.adversarial.lecam_weight) == (0.3, 0.05)
    assert config.quantizer.codebook_size == 2**18
    assert (config.quantizer.entropy_weight, config.quantizer.commitment_weight) == (0.1, 0.25)
    assert config.initialize.inflate == "imagenet_lfqgan_128_L"
    assert config.data.train.frames == 17
    assert (config.data.image_size, config.data.resize, config.data.crop) == (128, "cv2", "random")
    assert (config.model.time_downsampling, config.model.downsampling) == (4, 8)
    network = build_players(config).autoencoder
    assert round(sum(math.prod(leaf.shape) for leaf in network.parameters.values()) / 1e6, 1) == model.parameters


def test_parameter_count_is_that_of_encoder_and_decoder():
    model = find("imagenet_lfqgan_256_L")
    weights = build_players(load_config(ROOT / model.config)).autoencoder.parameters
    assert {name.split(".")[0] for name in weights} == {"encoder", "decoder"}
    assert round(sum(math.prod(leaf.shape) for leaf in weights.values()) / 1e6, 1) == model.parameters


def test_lookup():
    assert find("imagenet_ibqgan_1024").figure("rFID", "ImageNet 256x256") == 2.24
    model = find("ibq_generator_XXL")
    assert model.parameters == 2063.3
    assert find("IBQ/imagenet_conditional_llama_XXL") is find("TencentARC/IBQ-AR-XXL") is model
    assert find("TencentARC/Open-MAGVIT2:imagenet_128_B.ckpt").name == "imagenet_lfqgan_128_B"


@pytest.mark.parametrize("model", TOKENIZERS, ids=lambda model: model.name)
def test_codes_and_sizes_are_those_of_configuration_and_manifest(model):
    config = load_config(ROOT / model.config)
    quantizer = config.quantizer
    assert (model.codes, model.dimension) == ((quantizer.codebook_size,), quantizer.code_dim)
    side, time = config.model.downsampling, config.model.time_downsampling
    assert model.downsampling == ((time, side, side) if config.model.is_video else (side,))
    prefixes = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    count = sum(math.prod(shape) for key, shape in manifest_of(model).items() if key.startswith(prefixes))
    assert model.parameters == round(count / 1e6, 1)
    first = model.name.endswith("_B")
    assert getattr(quantizer, "bit_order", "lsb_first") == ("msb_first" if first else "lsb_first")


def test_names_and_files_are_of_one_model():
    for of in (lambda m: m.name, lambda m: m.full_name, lambda m: (m.repository, m.file), lambda m: m.config):
        assert len({of(model) for model in MODELS}) == len(MODELS) == 21


def test_lookup_errors_name_what_is_near():
    with pytest.raises(KeyError, match=r"did you mean .*imagenet_lfqgan_256_L"):
        find("imagenet_lfqgan_256")
    with pytest.raises(KeyError, match=r"several models: say open_magvit2_generator_B or ibq_generator_B"):
        find("imagenet_conditional_llama_B")
    with pytest.raises(KeyError, match="known are imagenet_lfqgan_256_L, "):
        find("zzz")
    with pytest.raises(KeyError, match="no SSIM on UCF was reported; there is rFVD on"):
        find("ucf101_lfqgan_128_L").figure("SSIM", "UCF")
