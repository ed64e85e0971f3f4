"""LPIPS as a frozen network: built from the configuration's choice of weights, or left out on request."""

from __future__ import annotations

import torch

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.lpips_weights import lpips_vgg_weights
from voken_common.config.schema.tokenizer import Config
from voken_torch.device.runtime import Runtime
from voken_torch.models.lpips import LPIPS


def build_lpips(config: Config) -> LPIPS:
    """The network with arbitrary weights, in evaluation mode and in the precision of the parameters."""
    with torch.random.fork_rng(devices=[]):
        network = LPIPS()
    return network.to(getattr(torch, config.precision.param_dtype)).eval()


def load_perceptual(config: Config, runtime: Runtime | None = None) -> LPIPS | None:
    """LPIPS with published weights on the runtime's device, or None where `perceptual.weights` is none.

    Raises:
        WeightsError: the weights are neither in the cache or folder nor can be downloaded.
        NameMismatch: the files hold other weights than the network needs.
    """
    if config.perceptual.weights == "none":
        return None
    network = build_lpips(config)
    weights = {key: torch.as_tensor(array) for key, array in lpips_vgg_weights(config.perceptual.weights).items()}
    names.require_same_shapes(weights, network.state_dict(), f"perceptual.weights {config.perceptual.weights}")
    network.load_state_dict(weights, strict=True)
    return network.to((runtime or Runtime()).device)
