"""Programs that a device records once and replays: CUDA graphs, and the NPU graphs that mirror them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

_WARM_UP = 2


def captured(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`function` as a graph of the device, or itself where the device has none.

    What it does must not depend on values on the host, and its tensors must stay where they are: it runs a few times
    first and is then recorded. A device that refuses is told in a warning, and the function runs as it is.
    """
    if device.type == "cpu":
        return function
    module: Any = torch.get_device_module(device)
    kind = getattr(module, "CUDAGraph", None) or getattr(module, "NPUGraph", None)
    if kind is None:
        return function
    # Libraries set themselves up at the first calls, which must not be recorded.
    side = module.Stream()
    side.wait_stream(module.current_stream())
    with module.stream(side):
        for _ in range(_WARM_UP):
            function()
    module.current_stream().wait_stream(side)
    graph = kind()
    try:
        with module.graph(graph):
            function()
    except RuntimeError as error:
        warnings.warn(f"{device} records no graph ({error}): sampling runs operation by operation", stacklevel=2)
        return function
    replay: Callable[[], None] = graph.replay
    return replay
