"""Give torch_npu's fused optimizers the behaviour of torch's own, on which the training step relies.

At their first step they move all parameters, gradients and moments into one block of memory each and look only at these
blocks from then on. Left alone, they would not see gradients that data parallelism or `zero_grad` allocated anew, nor
moments loaded from a checkpoint; and their step count, a plain number, would be counted twice were it a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def with_usual_manners(fused: type[Optimizer]) -> type[Optimizer]:
    """Return the class of a fused optimizer that can replace torch's own of the same name."""
    return type(fused.__name__, (_Usual, fused), {})


class _Usual(Optimizer):
    # What the fused classes ask before a step: false makes them gather the moments again.
    is_states_combined: bool
    _gradients: tuple[Tensor, ...] = ()
    _count: int | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with the gradients in `.grad`, whichever tensors they are."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._gradients = self._gradients or tuple(torch.zeros_like(p) for p in parameters)
        if self._count != self._steps_taken():
            self._gather_moments_again()
        given = [p.grad for p in parameters]
        for parameter, own in zip(parameters, self._gradients, strict=True):
            own.zero_() if parameter.grad is None else own.copy_(parameter.grad)
            parameter.grad = own
        result = super().step(closure)
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient
        self._count = self._steps_taken()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `Optimizer.zero_grad`."""
        Optimizer.zero_grad(self, set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Optimizer.load_state_dict`, at any time."""
        state = {i: {**values, "step": int(values["step"])} for i, values in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state})
        self._count = None

    def _gather_moments_again(self) -> None:
        # The moments lie in blocks that are freed before the values are taken from them: give each its own memory.
        for values in self.state.values():
            values.update({key: value.clone() for key, value in values.items() if isinstance(value, Tensor)})
        self.is_states_combined = False

    def _steps_taken(self) -> int:
        first = self.param_groups[0]["params"][0]
        return int(self.state[first].get("step", 0))
