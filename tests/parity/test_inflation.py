"""An inflated image tokenizer: norms of its weights, and latents and clips of both frameworks' video networks."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.support.golden_cases import (
    FORWARD_FLOAT32,
    assert_close,
    assert_numbers,
    channels_first,
    channels_last,
    weight,
)
from tests.support.reference_config import model_section
from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.inflation import inflate
from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import LFQConfig
from voken_jax.models.autoencoder import Autoencoder
from voken_jax.models.functional import Network
from voken_jax.models.layers import Policy
from voken_torch.models.autoencoder import Autoencoder as TorchAutoencoder

KINDS = ["inflate"]


def model_of(case, which):
    section = model_section(case.config[f"{which}_ddconfig"], "magvit2_video" if which == "video" else "magvit2")
    return ModelConfig.model_validate_json(json.dumps(section))


def lfq_of(case):
    bits = case.config["video_ddconfig"]["z_channels"]
    return LFQConfig(codebook_size=2**bits, code_dim=bits)


def inflated(case):
    """Weights by torch key, in float64."""
    image = TorchAutoencoder(model_of(case, "image"), lfq_of(case)).state_dict()
    video = TorchAutoencoder(model_of(case, "video"), lfq_of(case)).state_dict()
    weights = {key: weight(key, tuple(value.shape), case.seed) for key, value in image.items()}
    return inflate(weights, {key: tuple(value.shape) for key, value in video.items()})


def test_norms(case):
    found = {key.replace("decoder.", "dec.").removeprefix("encoder."): a for key, a in inflated(case).items()}
    norms = {key: float(np.linalg.norm(array)) for key, array in found.items()}
    assert_numbers(norms, case.config["norms"], "norm")


@pytest.fixture
def tolerance(precision):
    return FORWARD_FLOAT32 if precision == "float32" else None


def test_jax(case, precision, tolerance):
    dtype = jnp.dtype(precision)
    policy = Policy(dtype, dtype)
    network = Network(lambda rngs: Autoencoder(model_of(case, "video"), lfq_of(case), policy=policy, rngs=rngs))
    weights = {path: jnp.asarray(array, dtype) for path, array in names.to_jax(inflated(case)).items()}
    model = network.bind(weights)
    h = model.encode(jnp.asarray(channels_last(case.input()), dtype))
    y = model.decode(jnp.where(h > 0, 1.0, -1.0).astype(dtype))
    assert_close(channels_first(h), case.arrays["out/h"], "h", tolerance)
    assert_close(channels_first(y), case.arrays["out/y"], "y", tolerance)


def test_torch(case, precision, tolerance):
    dtype = getattr(torch, precision)
    model = TorchAutoencoder(model_of(case, "video"), lfq_of(case)).to(dtype)
    model.load_state_dict({key: torch.as_tensor(array) for key, array in inflated(case).items()}, strict=True)
    with torch.no_grad():
        h = model.encode(torch.as_tensor(case.input()).to(dtype))
        y = model.decode(torch.where(h > 0, 1.0, -1.0).to(dtype))
    assert_close(h.movedim(-1, 1).numpy(), case.arrays["out/h"], "h", tolerance)
    assert_close(y.numpy(), case.arrays["out/y"], "y", tolerance)
