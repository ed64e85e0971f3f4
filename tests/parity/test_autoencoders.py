"""The autoencoders of images and of videos: latents, reconstruction, and the gradient norm of every parameter."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.golden_cases import (
    FORWARD_FLOAT32,
    assert_close,
    assert_numbers,
    channels_first,
    channels_last,
    torch_shape,
    weights_for,
)
from tests.support.objectives import evaluate
from tests.support.reference_config import model_section
from voken_common.checkpoints import weight_names as names
from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import IBQConfig, LFQConfig
from voken_jax.models.autoencoder import Autoencoder
from voken_jax.models.functional import Network
from voken_jax.models.layers import Policy

KINDS = ["autoencoder_lfq", "autoencoder_lfq_2024", "autoencoder_ibq", "autoencoder_video"]
NETWORKS = {
    "autoencoder_lfq": "magvit2",
    "autoencoder_lfq_2024": "magvit2",
    "autoencoder_ibq": "vqgan",
    "autoencoder_video": "magvit2_video",
}

CODEBOOK = "quantize.embedding.embedding"


def network_of(case, dtype):
    """The autoencoder of a case, whose decoder takes the latents themselves (IBQ) or their signs (LFQ)."""
    dd = case.config["ddconfig"]
    lfq = case.kind != "autoencoder_ibq"
    section = model_section(dd, NETWORKS[case.kind]) | {"adaptive_norm": case.kind != "autoencoder_lfq_2024"}
    model = ModelConfig.model_validate_json(json.dumps(section))
    if lfq:
        quantizer = LFQConfig(codebook_size=2 ** dd["z_channels"], code_dim=dd["z_channels"])
    else:
        quantizer = IBQConfig(codebook_size=2, code_dim=case.config["embed_dim"])
    policy = Policy(jnp.dtype(dtype), jnp.dtype(dtype))
    return Network(lambda rngs: Autoencoder(model, quantizer, policy=policy, rngs=rngs))


def setup(case, dtype):
    """Forward pass (parameters, x) -> (h, y), parameters and input."""
    network = network_of(case, dtype)
    parameters = weights_for(network.parameters, case.seed, dtype=dtype)

    def forward(parameters, x):
        model = network.bind(parameters)
        h = model.encode(x)
        if case.kind != "autoencoder_ibq":
            signs = jnp.where(h > 0, 1.0, -1.0).astype(h.dtype)
            return h, model.decode(h + jax.lax.stop_gradient(signs - h))
        return h, model.decode(h)

    return forward, parameters, jnp.asarray(channels_last(case.input()), dtype)


def test_names_and_shapes(case):
    parameters = {k: v for k, v in network_of(case, "float32").parameters.items() if k != CODEBOOK}
    found = {names.to_torch_name(path): list(torch_shape(path, leaf.shape)) for path, leaf in parameters.items()}
    assert found == {k: v for k, v in case.config["shapes"].items() if k != names.to_torch_name(CODEBOOK)}


def test_forward_float32(case):
    forward, parameters, x = setup(case, "float32")
    h, y = jax.jit(forward)(parameters, x)
    assert_close(channels_first(h), case.arrays["out/h"], "h", FORWARD_FLOAT32)
    assert_close(channels_first(y), case.arrays["out/y"], "y", FORWARD_FLOAT32)


def test_forward_and_gradients_float64(case, x64):
    forward, parameters, x = setup(case, "float64")

    def objective(parameters):
        h, y = forward(parameters, x)
        return evaluate(case.config["objective"], decoder_out=y, x=x), (h, y)

    grads, (h, y) = jax.jit(jax.grad(objective, has_aux=True))(parameters)
    assert_close(channels_first(h), case.arrays["out/h"], "h")
    assert_close(channels_first(y), case.arrays["out/y"], "y")
    grads.pop(CODEBOOK, None)
    norms = {names.to_torch_name(path): np.linalg.norm(np.asarray(grad).ravel()) for path, grad in grads.items()}
    assert_numbers(norms, case.config["grad_norms"], "gradient norm")
