"""Checks between sections of a tokenizer's configuration, none of which is wrong by itself."""

from __future__ import annotations

from typing import Any

LEAST_LPIPS_SIDE = 16
"""Pixels; the perceptual network halves its input four times."""
RGB = 3


def check_relations(config: Any) -> None:
    """Check what the image size, the networks and the sources mean for each other.

    Args:
        config: a `voken_common.config.schema.tokenizer.Config`, which calls this where it is built.

    Raises:
        ValueError: an impossible combination; the message names both keys.
    """
    size, factor = config.data.image_size, config.model.downsampling
    if config.model.image_channels != RGB:
        raise ValueError(
            f"model.image_channels {config.model.image_channels} and data do not go together: every source gives RGB, "
            f"grey images too; set model.image_channels to {RGB}"
        )
    if size % factor:
        below = size // factor * factor
        raise ValueError(
            f"data.image_size {size} is not divisible by the {factor} pixels per token that "
            f"{len(config.model.channel_multipliers)} model.channel_multipliers give: choose "
            f"{f'{below} or ' if below else ''}{below + factor}"
        )
    least = least_side(config)
    if size < least:
        kind = config.discriminator.kind
        depth = "stages" if kind == "blur" else "layers"
        raise ValueError(
            f"data.image_size {size} is too small for discriminator.{depth} {getattr(config.discriminator, depth)}: "
            f"{kind} has nothing left of images under {least} pixels; lower discriminator.{depth}, or use larger images"
        )
    if config.perceptual.weights != "none" and size < LEAST_LPIPS_SIDE:
        raise ValueError(
            f"data.image_size {size} is too small for perceptual.weights {config.perceptual.weights}: the perceptual "
            f"network needs at least {LEAST_LPIPS_SIDE} pixels; set perceptual.weights to none, or enlarge the images"
        )


def least_side(config: Any) -> int:
    """The smallest side of an image of which the discriminator gives a logit."""
    discriminator = config.discriminator
    if discriminator.kind == "blur":
        return 1 if discriminator.blur_resample else int(2**discriminator.stages)
    if discriminator.kind == "patchgan_3d":
        return 1
    side: int = 1
    # Backwards: kernels of 4 with a padding of 1, two of stride 1 at the end and the others of stride 2.
    for stride in (1, 1, *[2] * discriminator.layers):
        side = (side - 1) * stride + 4 - 2
    return side
