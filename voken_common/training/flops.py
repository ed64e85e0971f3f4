"""Count the FLOPs of training a generator and look up the peak of devices: the two sides of FLOPs utilisation.

Shape letters: C width, F feed-forward width, T tokens, L layers, V codes.
"""

from __future__ import annotations

from voken_common.config.schema.transformer import TransformerConfig

PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Dense bfloat16 FLOP/s by the manufacturers' data sheets, by the beginning of the device's name."""


def peak_flops(device: str, compute_dtype: str) -> float | None:
    """FLOP/s of a device by the name it gives itself; None where it is not known: other devices, other dtypes."""
    if compute_dtype != "bfloat16":
        return None
    matching = [name for name in PEAKS if device == name or device.startswith((f"{name} ", f"{name}-"))]
    return PEAKS[max(matching, key=len)] if matching else None


def sample_flops(config: TransformerConfig) -> float:
    """FLOPs of training on one sample (T tokens): those of the matrix products, the backward pass twice the forward.

    Attention counts what is visible, the lower triangle; recomputation (`precision.remat`) is not counted, nor is what
    is not a product. So the utilisation made from it is below those of conventions that count all of attention.
    """
    width, tokens = config.width, config.tokens
    products = 4 * width**2 + 3 * width * config.feed_forward_width

    def layers(count: int, length: int) -> int:
        return count * (length * products + width * length * (length + 1))

    macs = layers(config.layers, tokens) + tokens * width * sum(config.vocabularies)
    if config.network == "factorized":
        macs += tokens * layers(config.factorized_layers, 2)
    else:
        macs += (6 * config.layers + 2) * width**2
    return 3.0 * 2.0 * macs
