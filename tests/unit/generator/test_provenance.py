"""A generator knows which tokenizer made its tokens, and no consumer takes another one."""

import jax.numpy as jnp
import pytest
import torch

from tests.support.tiny import TINY
from tests.support.tiny_generator import generator_config, write_shards
from voken_common.checkpoints.steps import check_same_run
from voken_common.config.loading import validate
from voken_common.data.errors import DataError
from voken_common.data.generator_data import with_origin
from voken_common.errors import CheckpointError
from voken_jax.generator.api import Generator as JaxGenerator
from voken_jax.tokenizer.api import Tokenizer as JaxTokenizer
from voken_jax.tokenizer.state import build_autoencoder, build_generator_network
from voken_torch.generator.api import Generator as TorchGenerator
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.generator import build_generator
from voken_torch.tokenizer.api import Tokenizer as TorchTokenizer


def jax_pair(config, value):
    tiny = validate(TINY, "tiny")
    weights = {k: jnp.full(v.shape, value, v.dtype) for k, v in build_autoencoder(tiny).parameters.items()}
    generator = {k: jnp.zeros(v.shape, v.dtype) for k, v in build_generator_network(config).parameters.items()}
    return lambda c: JaxGenerator(c, generator, JaxTokenizer(tiny, weights)), JaxTokenizer(tiny, weights)


def torch_pair(config, value):
    tiny = validate(TINY, "tiny")
    shapes = Autoencoder(tiny.model, tiny.quantizer).state_dict()
    weights = {k: torch.full_like(v, value) for k, v in shapes.items()}
    generator = {k: torch.zeros_like(v) for k, v in build_generator(config.model).state_dict().items()}
    return lambda c: TorchGenerator(c, generator, TorchTokenizer(tiny, weights)), TorchTokenizer(tiny, weights)


@pytest.fixture
def config(tmp_path):
    return generator_config(write_shards(tmp_path, [256]))


@pytest.mark.parametrize("pair", [jax_pair, torch_pair])
def test_a_generator_takes_its_own_tokenizer_only(pair, config):
    make, tokenizer = pair(config, 0.5)
    fingerprint = tokenizer.fingerprint()
    make(config)
    make(config.model_copy(update={"tokenizer_fingerprint": fingerprint}))
    trained_on = pair(config, 0.25)[1].fingerprint()
    assert trained_on != fingerprint
    expected = f"tokenizer tiny is {fingerprint[:12]}, generator tiny_generator was trained with {trained_on[:12]}"
    with pytest.raises(CheckpointError, match=expected):
        make(config.model_copy(update={"tokenizer_fingerprint": trained_on}))


def test_the_tokens_say_which_tokenizer_it_is(config):
    known = with_origin(config, None)
    assert known.tokenizer_fingerprint == "0" * 64
    assert with_origin(known, None) == known
    with pytest.raises(DataError, match=f"tokenizer_fingerprint is {'1' * 64}, but the tokens are of tokenizer 0000"):
        with_origin(config.model_copy(update={"tokenizer_fingerprint": "1" * 64}), None)


def test_a_run_does_not_go_on_with_other_tokens(config):
    known = with_origin(config, None)
    # Checkpoints of earlier versions do not know it.
    check_same_run(config, known)
    other = known.model_copy(update={"tokenizer_fingerprint": "1" * 64})
    with pytest.raises(
        CheckpointError, match=f"trained with tokenizer_fingerprint {'0' * 64}, this run has {'1' * 64}"
    ):
        check_same_run(known, other)
    renamed = known.model_copy(update={"class_names": ("b",)})
    with pytest.raises(CheckpointError, match=r"trained with class_names \['a'\], this run has \['b'\]"):
        check_same_run(known.model_copy(update={"class_names": ("a",)}), renamed)


def changed(*overrides):
    mapping = validate(TINY, "tiny").model_dump(mode="json")
    for path, value in overrides:
        section, key = path.split(".")
        mapping[section][key] = value
    return validate(mapping, "changed")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("precision.compute_dtype", "bfloat16"),
        ("precision.remat", True),
        ("quantizer.temperature", 0.02),
        ("quantizer.commitment_weight", 1.0),
        ("training.log_every", 1),
        ("optimizer.learning_rate", 1e-4),
        ("data.workers", 3),
    ],
)
def test_what_leaves_the_weights_as_they_are_may_change(path, value):
    (text,) = check_same_run(validate(TINY, "tiny"), changed((path, value)))
    assert text.startswith(f"{path} (was ")
    assert text.endswith(f", is {value})")


@pytest.mark.parametrize(
    ("path", "value"),
    [("precision.param_dtype", "float64"), ("discriminator.layers", 1), ("model.residual_blocks", 2)],
)
def test_what_changes_the_weights_is_refused_by_its_key(path, value):
    with pytest.raises(CheckpointError, match=rf"trained with {path} \S+, this run has {value};") as caught:
        check_same_run(validate(TINY, "tiny"), changed((path, value)))
    assert len(str(caught.value)) < 250
