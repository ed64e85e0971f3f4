"""Relations between sections are checked when a configuration is loaded, and the message names both keys."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.support.tiny import TINY, quantized_by
from tests.support.tiny_generator import generator_mapping
from voken_common.config.loading import ConfigError, validate, validate_any
from voken_common.config.schema.relations import least_side
from voken_common.sampling.requests import CACHE_DTYPES, check_cache_dtype
from voken_jax.models.discriminator import build_discriminator as build_jax
from voken_jax.models.layers import Policy
from voken_torch.models.discriminator import build_discriminator as build_torch


def changed(base=TINY, **changes):
    mapping = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for path, value in changes.items():
        section, key = path.split("__")
        mapping[section] = mapping[section] | {key: value}
    return mapping


def message(mapping):
    with pytest.raises(ConfigError) as caught:
        validate(mapping, "run.yaml")
    return str(caught.value)


@pytest.mark.parametrize("size", [15, 17, 1, 33])
def test_the_image_size_is_whole_tokens(size):
    text = message(changed(data__image_size=size))
    assert f"data.image_size {size} is not divisible by the 2 pixels per token that 2 model.channel_multipliers" in text
    assert f"or {size + 1}" in text or f"choose {size + 1}" in text


def test_250_pixels_with_16_per_token():
    mapping = changed(data__image_size=250, model__channel_multipliers=[1, 1, 1, 1, 1])
    assert "data.image_size 250 is not divisible by the 16 pixels per token" in message(mapping)
    assert "choose 240 or 256" in message(mapping)


def test_8_pixels_with_a_discriminator_of_two_layers():
    text = message(changed(data__image_size=8))
    assert "data.image_size 8 is too small for discriminator.layers 2" in text
    assert "images under 12 pixels" in text


def test_the_perceptual_network_needs_16_pixels():
    small = quantized_by("ibq") | {"perceptual": {"weights": "auto"}}
    assert "data.image_size 8 is too small for perceptual.weights auto" in message(small)
    validate(small | {"perceptual": {"weights": "none"}}, "run.yaml")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_sources_give_rgb(channels):
    assert f"model.image_channels {channels} and data do not go" in message(changed(model__image_channels=channels))


@pytest.mark.parametrize("temperature", [1e-40, 1e-9, 0, -1.0])
def test_temperatures_that_overflow(temperature):
    assert "quantizer.temperature" in message(changed(quantizer__temperature=temperature))


def test_sampling_temperatures_that_overflow(tmp_path):
    ways = {"scale": [1.0], "top_k": [0], "top_p": [1.0]}
    validate_any(generator_mapping(tmp_path, sampling=ways | {"temperature": [0.0]}), "run.yaml")
    with pytest.raises(ConfigError, match=r"sampling.temperature.*found 1e-40: expected 0, which takes"):
        validate_any(generator_mapping(tmp_path, sampling=ways | {"temperature": [1e-40]}), "run.yaml")


def test_keys_and_values_are_kept_as_floats():
    for name in CACHE_DTYPES:
        check_cache_dtype(name)
        check_cache_dtype(getattr(torch, name))
        check_cache_dtype(jnp.dtype(name))
    for wrong in ("int8", torch.int8, jnp.dtype("int8"), np.dtype("uint8"), "complex64"):
        with pytest.raises(ValueError, match=r"cache_dtype is \w+: expected float32, bfloat16"):
            check_cache_dtype(wrong)


DISCRIMINATORS = [{"kind": "patchgan", "channels": 4, "layers": n} for n in (1, 2, 3)] + [
    {"kind": "blur", "hidden_channels": 32, "stages": 2, "blur_resample": blur} for blur in (True, False)
]


@pytest.mark.parametrize("discriminator", DISCRIMINATORS, ids=str)
def test_the_smallest_side_is_that_of_the_networks(discriminator):
    config = validate(changed(data__image_size=64) | {"discriminator": discriminator}, "run.yaml")
    least = least_side(config)

    def logits(side):
        network = nnx.eval_shape(lambda: build_jax(config.discriminator, 3, policy=Policy(), rngs=nnx.Rngs(0)))
        split = nnx.split(network)
        run = lambda state, x: nnx.merge(split[0], state)(x, train=False)  # noqa: E731
        return jax.eval_shape(run, split[1], jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)).size

    assert logits(least) > 0
    with torch.device("meta"):
        network = build_torch(config.discriminator, 3).eval()
        assert network(torch.zeros(2, 3, least, least)).numel() > 0
    if least > 1:
        with contextlib.suppress(ValueError, TypeError):
            assert logits(least - 1) == 0
        with torch.device("meta"), pytest.raises(RuntimeError):
            network(torch.zeros(2, 3, least - 1, least - 1))
