"""I3D, the video network of Frechet video distances, trained on the 400 classes of Kinetics.

J. Carreira and A. Zisserman, "Quo Vadis, Action Recognition?", 2017. Names are those of `i3d_pretrained_400.pt`; every
convolution and pool pads like TensorFlow's SAME.
"""

from __future__ import annotations

from voken_common.checkpoints.feature_networks.layers import Branches, Conv, FeatureNetwork, Pool

SIDE = 224
"""Pixels along a side of the frames that the network sees."""
CLASSES = 400
HEAD_POOL = (2, 7, 7)
"""Average over time, height and width before the logits, stride 1."""
LEAST_FRAMES = 9
"""Fewer leave less than the two time steps that the last pool needs."""


def _conv(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> Conv:
    return Conv(name, inputs, outputs, (kernel,) * 3, (stride,) * 3, None)


def _pool(kernel: tuple[int, ...], stride: tuple[int, ...]) -> Pool:
    return Pool("max", kernel, stride, None)


def _mixed(
    name: str, inputs: int, direct: int, first: tuple[int, int], second: tuple[int, int], pooled: int
) -> Branches:
    return Branches(
        (
            (_conv(f"{name}.b0", inputs, direct, 1),),
            (_conv(f"{name}.b1a", inputs, first[0], 1), _conv(f"{name}.b1b", *first, 3)),
            (_conv(f"{name}.b2a", inputs, second[0], 1), _conv(f"{name}.b2b", *second, 3)),
            (_pool((3, 3, 3), (1, 1, 1)), _conv(f"{name}.b3b", inputs, pooled, 1)),
        )
    )


I3D = FeatureNetwork(
    name="I3D (Kinetics-400)",
    stages=(
        (
            "stem",
            (
                _conv("Conv3d_1a_7x7", 3, 64, 7, 2),
                _pool((1, 3, 3), (1, 2, 2)),
                _conv("Conv3d_2b_1x1", 64, 64, 1),
                _conv("Conv3d_2c_3x3", 64, 192, 3),
                _pool((1, 3, 3), (1, 2, 2)),
            ),
        ),
        (
            "Mixed_3",
            (
                _mixed("Mixed_3b", 192, 64, (96, 128), (16, 32), 32),
                _mixed("Mixed_3c", 256, 128, (128, 192), (32, 96), 64),
                _pool((3, 3, 3), (2, 2, 2)),
            ),
        ),
        (
            "Mixed_4",
            (
                _mixed("Mixed_4b", 480, 192, (96, 208), (16, 48), 64),
                _mixed("Mixed_4c", 512, 160, (112, 224), (24, 64), 64),
                _mixed("Mixed_4d", 512, 128, (128, 256), (24, 64), 64),
                _mixed("Mixed_4e", 512, 112, (144, 288), (32, 64), 64),
                _mixed("Mixed_4f", 528, 256, (160, 320), (32, 128), 128),
                _pool((2, 2, 2), (2, 2, 2)),
            ),
        ),
        (
            "Mixed_5",
            (
                _mixed("Mixed_5b", 832, 256, (160, 320), (32, 128), 128),
                _mixed("Mixed_5c", 832, 384, (192, 384), (48, 128), 128),
            ),
        ),
    ),
    conv_leaf="conv3d",
    epsilon=1e-5,
    head=(("logits.conv3d.weight", (CLASSES, 1024, 1, 1, 1)), ("logits.conv3d.bias", (CLASSES,))),
)
