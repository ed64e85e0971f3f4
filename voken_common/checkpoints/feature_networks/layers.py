"""A small vocabulary of layers in which the feature networks are written down once for both frameworks.

A network is a sequence of stages, a stage a sequence of steps: a convolution with batch norm and ReLU, a pool, or
several branches whose results are concatenated over channels. Two and three spatial axes are written alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Padding = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Conv:
    """Convolution without bias, batch norm, ReLU.

    Attributes:
        name: of the module that holds the convolution and the norm.
        inputs, outputs: channels.
        kernel, stride: per spatial axis.
        padding: zeros on every side per axis; None: TensorFlow's SAME, which depends on the input's size.
    """

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | None


@dataclass(frozen=True)
class Pool:
    """Maximum, or average over the positions that are not padding; `padding` as of `Conv`."""

    kind: Literal["max", "average"]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | None


@dataclass(frozen=True)
class Branches:
    """Parts that all see the same input; their outputs are concatenated over channels."""

    parts: tuple[tuple[Step, ...], ...]


Step = Conv | Pool | Branches


@dataclass(frozen=True)
class FeatureNetwork:
    """A network up to its last feature map.

    Attributes:
        name: for people.
        stages: in order; a stage's output can be looked at from outside by its name.
        conv_leaf: what the convolution is called inside its module (`conv`, `conv3d`).
        epsilon: of the batch norms.
        head: torch key and shape of what follows the last feature map.
    """

    name: str
    stages: tuple[tuple[str, tuple[Step, ...]], ...]
    conv_leaf: str
    epsilon: float
    head: tuple[tuple[str, tuple[int, ...]], ...]

    def convolutions(self) -> Iterator[Conv]:
        """Every convolution in the order of the stages."""
        for _, steps in self.stages:
            yield from _convolutions(steps)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor under its torch key, with its shape in torch's layout, except the norms' batch counters."""
        found = dict(self.head)
        for conv in self.convolutions():
            found[f"{conv.name}.{self.conv_leaf}.weight"] = (conv.outputs, conv.inputs, *conv.kernel)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                found[f"{conv.name}.bn.{leaf}"] = (conv.outputs,)
        return found


def sides(
    padding: tuple[int, ...] | None, kernel: tuple[int, ...], stride: tuple[int, ...], size: tuple[int, ...]
) -> Padding:
    """(before, after) per axis; SAME gives ceil(size / stride) outputs, the odd zero at the end."""
    if padding is not None:
        return tuple((p, p) for p in padding)
    result = []
    for k, s, n in zip(kernel, stride, size, strict=True):
        total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
        result.append((total // 2, total - total // 2))
    return tuple(result)


def _convolutions(steps: tuple[Step, ...]) -> Iterator[Conv]:
    for step in steps:
        if isinstance(step, Conv):
            yield step
        elif isinstance(step, Branches):
            for part in step.parts:
                yield from _convolutions(part)
