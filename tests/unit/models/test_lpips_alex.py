"""LPIPS with AlexNet: names and shapes are the published ones, and both frameworks agree."""

import jax.numpy as jnp
import numpy as np
import torch

from tests.support.golden_cases import weight
from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.lpips_weights import lpips_shapes
from voken_jax.models.functional import Network
from voken_jax.models.layers import Policy
from voken_jax.models.lpips import LPIPS as JaxLPIPS
from voken_torch.models.lpips import LPIPS


def test_frameworks_agree_on_recipe_weights():
    arrays = {key: weight(key, shape, 5).astype(np.float32) for key, shape in lpips_shapes("alex").items()}
    arrays = {key: np.abs(array) if key.startswith("lin") else array for key, array in arrays.items()}
    # The constants of the scaling layer must not be near zero.
    arrays["scaling_layer.scale"] = np.full((1, 3, 1, 1), 0.45, np.float32)
    in_torch = LPIPS("alex").eval()
    in_torch.load_state_dict({key: torch.tensor(array) for key, array in arrays.items()}, strict=True)
    network = Network(lambda rngs: JaxLPIPS("alex", policy=Policy(), rngs=rngs))
    weights = names.to_jax(arrays)
    names.require_same_shapes(weights, network.parameters | network.buffers, "alex")
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 2, 64, 72, 3)).astype(np.float32)
    ours = network.bind({k: jnp.asarray(v) for k, v in weights.items()})(jnp.asarray(x), jnp.asarray(y))
    theirs = in_torch(*(torch.tensor(image).movedim(-1, 1) for image in (x, y)))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert (np.asarray(ours) > 0).all()
    # conv1 of stride 4 and two pools: 64 -> 15 -> 7 -> 3 positions.
    assert in_torch.net(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 256, 3, 3)
