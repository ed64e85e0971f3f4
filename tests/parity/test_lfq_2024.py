"""Ids of the networks of June 2024: most significant bit first, and so are both halves, in both frameworks."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from voken_common.config.schema.quantizer import LFQConfig
from voken_common.data.tokens.format import join_ids, split_ids
from voken_jax.quantizers import configured as in_jax
from voken_torch.quantizers import configured as in_torch

KINDS = ["autoencoder_lfq_2024"]


def quantizer_of(case):
    bits = case.config["ddconfig"]["z_channels"]
    halves = (bits // 2, bits - bits // 2)
    return LFQConfig(codebook_size=2**bits, code_dim=bits, bit_order="msb_first", token_bits=halves)


@pytest.fixture(params=["jax", "torch"])
def framework(request):
    """(functions of the configured quantizer, array of it, NumPy array of that)."""
    if request.param == "jax":
        return in_jax, jnp.asarray, np.asarray
    return in_torch, torch.from_numpy, lambda tensor: tensor.numpy()


def test_ids(case, framework):
    functions, placed, array = framework
    config = quantizer_of(case)
    latents = np.moveaxis(case.arrays["out/h"], 1, -1).astype(np.float32)
    ids = array(functions.encode_indices(config, placed(latents.copy()), None))
    np.testing.assert_array_equal(ids, case.arrays["out/ids"])
    np.testing.assert_array_equal(array(functions.quantize(config, placed(latents.copy()), None).indices), ids)
    codes = array(functions.lookup(config, placed(ids.copy()), None))
    np.testing.assert_array_equal(codes, np.where(latents > 0, 1, -1))
    np.testing.assert_array_equal(array(functions.code_indices(config, placed(codes.copy()), None)), ids)


def test_halves(case):
    vocabularies = tuple(2**bits for bits in quantizer_of(case).token_bits)
    tokens = split_ids(case.arrays["out/ids"], vocabularies, "msb_first")
    np.testing.assert_array_equal(tokens[..., 0], case.arrays["out/ids_pre"])
    np.testing.assert_array_equal(tokens[..., 1], case.arrays["out/ids_post"])
    np.testing.assert_array_equal(join_ids(tokens, vocabularies, "msb_first"), case.arrays["out/ids"])
