"""The Inception network of FID: the weights of TensorFlow's 2015 graph as pytorch-fid publishes them.

C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016. This variant differs from the
common Inception v3: average pools leave padding out of the mean, the last block pools by maximum, and there are 1008
classes. Names are those of `pt_inception-2015-12-05-6726825d.pth`.
"""

from __future__ import annotations

from voken_common.checkpoints.feature_networks.layers import Branches, Conv, FeatureNetwork, Pool, Step

SIDE = 299
"""Pixels along a side of what the network sees."""
FEATURES = 2048
CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_FEATURES = 17 * 17 * SPATIAL_CHANNELS
"""sFID looks at the first channels of the 1x1 branch of Mixed_6d."""
_MAX = Pool("max", (3, 3), (2, 2), (0, 0))
_AVERAGE = Pool("average", (3, 3), (1, 1), (1, 1))
_MAX_SAME = Pool("max", (3, 3), (1, 1), (1, 1))


def _conv(
    name: str, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True
) -> Conv:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    return Conv(name, inputs, outputs, size, (stride, stride), tuple(k // 2 if pad else 0 for k in size))


def _chain(block: str, inputs: int, *layers: tuple[str, int, int | tuple[int, int]]) -> tuple[Step, ...]:
    """Convolutions of stride 1 that keep the size, each from the width of the one before."""
    steps = []
    for name, outputs, kernel in layers:
        steps.append(_conv(f"{block}.{name}", inputs, outputs, kernel))
        inputs = outputs
    return tuple(steps)


def _wide(block: str, inputs: int, pooled: int) -> Branches:
    """Mixed_5: 35x35 positions."""
    return Branches(
        (
            _chain(block, inputs, ("branch1x1", 64, 1)),
            _chain(block, inputs, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            _chain(block, inputs, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
            (_AVERAGE, *_chain(block, inputs, ("branch_pool", pooled, 1))),
        )
    )


def _factorized(block: str, width: int) -> Branches:
    """Mixed_6b to 6e: 17x17 positions, 7x7 convolutions as rows and columns."""
    row, column = (1, 7), (7, 1)
    double = (
        *(("branch7x7dbl_1", width, 1), ("branch7x7dbl_2", width, column), ("branch7x7dbl_3", width, row)),
        *(("branch7x7dbl_4", width, column), ("branch7x7dbl_5", 192, row)),
    )
    return Branches(
        (
            _chain(block, 768, ("branch1x1", 192, 1)),
            _chain(block, 768, ("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)),
            _chain(block, 768, *double),
            (_AVERAGE, *_chain(block, 768, ("branch_pool", 192, 1))),
        )
    )


def _pair(block: str, name: str, letters: str = "ab") -> Branches:
    """A row and a column of the same input."""
    row, column = (f"{block}.{name}{letter}" for letter in letters)
    return Branches(((_conv(row, 384, 384, (1, 3)),), (_conv(column, 384, 384, (3, 1)),)))


def _expanded(block: str, inputs: int, pool: Pool) -> Branches:
    """Mixed_7b and 7c: 8x8 positions."""
    return Branches(
        (
            _chain(block, inputs, ("branch1x1", 320, 1)),
            (*_chain(block, inputs, ("branch3x3_1", 384, 1)), _pair(block, "branch3x3_2")),
            (
                *_chain(block, inputs, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)),
                _pair(block, "branch3x3dbl_3"),
            ),
            (pool, *_chain(block, inputs, ("branch_pool", 192, 1))),
        )
    )


def _first_reduction(block: str = "Mixed_6a") -> Branches:
    double = _chain(block, 288, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
    return Branches(
        (
            (_conv(f"{block}.branch3x3", 288, 384, 3, 2, pad=False),),
            (*double, _conv(f"{block}.branch3x3dbl_3", 96, 96, 3, 2, pad=False)),
            (_MAX,),
        )
    )


def _second_reduction(block: str = "Mixed_7a") -> Branches:
    seven = _chain(
        block, 768, ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
    )
    return Branches(
        (
            (*_chain(block, 768, ("branch3x3_1", 192, 1)), _conv(f"{block}.branch3x3_2", 192, 320, 3, 2, pad=False)),
            (*seven, _conv(f"{block}.branch7x7x3_4", 192, 192, 3, 2, pad=False)),
            (_MAX,),
        )
    )


INCEPTION = FeatureNetwork(
    name="FID Inception",
    stages=(
        (
            "block0",
            (
                _conv("Conv2d_1a_3x3", 3, 32, 3, 2, pad=False),
                _conv("Conv2d_2a_3x3", 32, 32, 3, pad=False),
                _conv("Conv2d_2b_3x3", 32, 64, 3),
                _MAX,
            ),
        ),
        ("block1", (_conv("Conv2d_3b_1x1", 64, 80, 1), _conv("Conv2d_4a_3x3", 80, 192, 3, pad=False), _MAX)),
        ("Mixed_5", (_wide("Mixed_5b", 192, 32), _wide("Mixed_5c", 256, 64), _wide("Mixed_5d", 288, 64))),
        ("Mixed_6abc", (_first_reduction(), _factorized("Mixed_6b", 128), _factorized("Mixed_6c", 160))),
        ("Mixed_6d", (_factorized("Mixed_6d", 160),)),
        ("block2", (_factorized("Mixed_6e", 192),)),
        (
            "Mixed_7",
            (_second_reduction(), _expanded("Mixed_7b", 1280, _AVERAGE), _expanded("Mixed_7c", 2048, _MAX_SAME)),
        ),
    ),
    conv_leaf="conv",
    epsilon=1e-3,
    head=(("fc.weight", (CLASSES, FEATURES)), ("fc.bias", (CLASSES,))),
)
