"""AdamW over flat tensors, with the habits of torch_npu's fused optimizers that surprise a program.

They move parameters, gradients and moments into one block of memory each at the first step and only look at these
blocks from then on: a gradient tensor or a moment that is replaced later goes unseen. They count steps in a plain
number, refuse `zero_grad(set_to_none=True)`, and know float32 and float16.
"""

import math

import torch


class NpuFusedAdamW(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.is_params_grads_combined = self.is_states_combined = False
        self._members, self._blocks, self._steps = [], [], []

    def zero_grad(self, set_to_none=False):
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        self._combine_params_grads()
        for _, gradients in self._blocks:
            gradients.zero_()

    @torch.no_grad()
    def step(self, closure=None):
        self._combine_params_grads()
        self._combine_states()
        for number, group in enumerate(self.param_groups):
            for parameter in self._members[number]:
                self.state[parameter]["step"] += 1
            self._steps[number]["step"] += 1
            _adamw(group, *self._blocks[number], **self._steps[number])

    def _combine_params_grads(self):
        if self.is_params_grads_combined:
            return
        self._members = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        self._blocks = [(_combine(members), _combine([p.grad for p in members])) for members in self._members]
        self.is_params_grads_combined = True

    def _combine_states(self):
        if self.is_states_combined:
            return
        self._steps = []
        for members in self._members:
            for parameter in members:
                state = self.state[parameter]
                state.setdefault("step", 0)
                for moment in ("exp_avg", "exp_avg_sq"):
                    state[moment] = state[moment].clone() if moment in state else torch.zeros_like(parameter)
            moments = {m: _combine([self.state[p][m] for p in members]) for m in ("exp_avg", "exp_avg_sq")}
            self._steps.append({"step": self.state[members[0]]["step"], **moments})
        self.is_states_combined = True


def _adamw(group, parameters, gradients, step, exp_avg, exp_avg_sq):
    first, second = group["betas"]
    parameters.mul_(1 - group["lr"] * group["weight_decay"])
    exp_avg.lerp_(gradients, 1 - first)
    exp_avg_sq.mul_(second).addcmul_(gradients, gradients, value=1 - second)
    scale = exp_avg_sq.sqrt() / math.sqrt(1 - second**step) + group["eps"]
    parameters.addcdiv_(exp_avg, scale, value=-group["lr"] / (1 - first**step))


def _combine(tensors):
    """One flat tensor that owns the memory of all of these from now on, gaps of their storages included."""
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.float16):
            raise TypeError(f"fused optimizers take float32 or float16, not {tensor.dtype}")
    sizes = [tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in tensors]
    block, offset = torch.zeros(sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device), 0
    for tensor, size in zip(tensors, sizes, strict=True):
        values = tensor.clone()
        torch.ops.simulated_npu.change_data_ptr(tensor, block, offset)
        tensor.copy_(values)
        offset += size
    return block
