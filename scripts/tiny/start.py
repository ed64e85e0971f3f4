"""A patch quantizer in the form of Open-MAGVIT2's network: the weights that the tiny tokenizer starts from.

The encoder's convolutions compute the principal components of 4x4 patches, the codebook holds their k-means centres,
the decoder turns a centre back into its patch, and every residual block adds nothing yet. Group norms would take levels
away; constant channels beside the data make them divide by nearly the same number for every image, and the norm's scale
multiplies by it again. Swish is all but a line far above zero, so that data pass through it on a shift.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from voken_common.data.sources.skimage import PHOTOGRAPHS, Photographs
from voken_common.quickstart.kmeans import patches_of
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.magvit2 import AdaptiveGroupNorm, ResidualBlock

PATCH, COMPONENTS, GROUPS = 4, 40, 4
CONSTANT = 6.0
"""Size of the constant channels beside the data: group norms then scale all images by nearly the same."""
SHIFT = 6.0
"""Where swish is all but linear."""


def training_images() -> list[np.ndarray]:
    """The train part of every photograph, as bytes."""
    return [Photographs("train").read(i)[0] for i in range(len(PHOTOGRAPHS))]


def training_patches(images: list[np.ndarray], count: int, generator: np.random.Generator) -> np.ndarray:
    """(count, 48) patches in [-1, 1], equally many of every image."""
    drawn = []
    for image in images:
        top, left = generator.integers(PATCH, size=2)
        patches = patches_of(image[top:, left:].astype(np.float32)[None] / 127.5 - 1, PATCH)
        drawn.append(patches[generator.permutation(len(patches))[: count // len(images)]])
    return np.concatenate(drawn)


def components_and_centres(images: list[np.ndarray], codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components (48, 40) of patches, the first three of them plain colour means, and k-means centres."""
    from scipy.cluster.vq import kmeans2

    patches = training_patches(images, 64000, np.random.default_rng(0))
    colours = np.zeros((PATCH * PATCH * 3, 3))
    for channel in range(3):
        colours[channel::3, channel] = 1 / PATCH
    rest = patches - patches @ colours @ colours.T
    _, vectors = np.linalg.eigh(rest.T @ rest)
    basis = np.concatenate([colours, vectors[:, ::-1][:, : COMPONENTS - 3]], axis=1)
    centres, _ = kmeans2(patches @ basis, codes, iter=15, minit="points", seed=0)
    return basis.astype(np.float32), centres.astype(np.float32)


def slots(channels: int, data: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Channels for data spread over the groups, for the negatives of the first of them, and for constants.

    In every group: data, then negatives, then pairs of +-CONSTANT. Negatives keep a group's mean at zero.
    """
    size = channels // GROUPS
    per_group = -(-data // GROUPS)
    place = np.array([size * (i % GROUPS) + i // GROUPS for i in range(data)])
    twice = 2 * per_group + 2 <= size
    mirrored = data if twice else min(data, GROUPS)
    negative = np.array([size * (i % GROUPS) + per_group + i // GROUPS for i in range(mirrored)])
    used = set(place) | set(negative)
    free = [[c for c in range(g * size, (g + 1) * size) if c not in used] for g in range(GROUPS)]
    constants = np.array([c for group in free for c in group[: len(group) // 2 * 2]])
    return place, negative, constants


def signs_of(constants: np.ndarray) -> np.ndarray:
    """Alternating signs: a group's constants add up to nothing."""
    return np.where(np.arange(len(constants)) % 2 == 0, CONSTANT, -CONSTANT).astype(np.float32)


def spread(rows: np.ndarray, channels: int, data: int) -> tuple[np.ndarray, np.ndarray]:
    """A map to the slots of a layer: (channels, inputs) weights of `rows` (data, inputs), and biases of constants."""
    place, negative, constants = slots(channels, data)
    weight, bias = np.zeros((channels, rows.shape[1]), np.float32), np.zeros(channels, np.float32)
    weight[place], weight[negative], bias[constants] = rows, -rows[: len(negative)], signs_of(constants)
    return weight, bias


def gathered(rows: np.ndarray, channels: int) -> np.ndarray:
    """A map from the slots of a layer: (outputs, channels) of `rows` (outputs, data); half from negatives if any."""
    place, negative, _ = slots(channels, rows.shape[1])
    weight = np.zeros((len(rows), channels), np.float32)
    weight[:, place] = rows
    mirrored = len(negative)
    weight[:, place[:mirrored]] /= 2
    weight[:, negative] = -rows[:, :mirrored] / 2
    return weight


def carried(data: int, before: int, after: int) -> np.ndarray:
    """(after, before): the slots of one layer in those of another, constants too; for shortcuts without a bias."""
    weight, bias = spread(gathered(np.eye(data, dtype=np.float32), before), after, data)
    constants = slots(before, data)[2]
    plus, minus = constants[0], constants[1]
    weight[bias > 0, plus], weight[bias < 0, minus] = 1.0, 1.0
    return weight


def put(parameter: Tensor, value: np.ndarray) -> None:
    """Copy in place."""
    with torch.no_grad():
        parameter.copy_(torch.tensor(np.ascontiguousarray(value), dtype=parameter.dtype).reshape(parameter.shape))


def centre_tap(kernel: Tensor, matrix: np.ndarray) -> None:
    """A 3x3 convolution that only sees its own pixel."""
    weight = np.zeros(tuple(kernel.shape), np.float32)
    weight[:, :, 1, 1] = matrix
    put(kernel, weight)


def strided(kernel: Tensor, matrix: np.ndarray, inputs: int) -> None:
    """A 3x3 of stride 2 on 2x2 pixels: `matrix` (outputs, 4 * inputs) in the order row, column, input."""
    weight = np.zeros(tuple(kernel.shape), np.float32)
    parts = matrix.reshape(len(matrix), 2, 2, inputs)
    for row in range(2):
        for column in range(2):
            weight[:, :inputs, 1 + row, 1 + column] = parts[:, row, column]
    put(kernel, weight)


def start_encoder(model: Autoencoder, basis: np.ndarray) -> None:
    """Pixels, 2x2 pixels, components of 4x4 pixels; what no slot holds keeps its random start."""
    encoder = model.encoder
    pixels = encoder.conv_in.weight.detach().numpy().copy()
    pixels[:3] = 0
    pixels[range(3), range(3), 1, 1] = 1
    put(encoder.conv_in.weight, pixels)
    first = encoder.down[0].downsample
    kernel, bias = first.weight.detach().numpy().copy(), first.bias.detach().numpy().copy()
    strided(first.weight, np.eye(first.out_channels, 12, dtype=np.float32), 3)
    put(first.weight[12:], kernel[12:])
    put(first.bias, np.where(np.arange(len(bias)) < 12, 0, bias))
    shortcut = encoder.down[1].block[0].nin_shortcut.weight
    matrix = shortcut.detach().numpy()[:, :, 0, 0].copy()
    matrix[:12] = np.eye(12, matrix.shape[1])
    put(shortcut, matrix)
    second, wide = encoder.down[1].downsample, encoder.down[2].block[0].nin_shortcut.weight
    parts = basis.T.reshape(COMPONENTS, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(COMPONENTS, 48) / PATCH
    rows = np.zeros((second.out_channels, 48), np.float32)
    rows[:COMPONENTS] = parts
    strided(second.weight, rows, 12)
    put(second.bias, np.concatenate([np.zeros(COMPONENTS), signs_of(np.arange(second.out_channels - COMPONENTS))]))
    weight, constants = spread(np.eye(COMPONENTS, second.out_channels, dtype=np.float32), len(wide), COMPONENTS)
    weight[constants > 0, COMPONENTS], weight[constants < 0, COMPONENTS + 1] = 1.0, 1.0
    put(wide, weight)
    slope, height = swish_line()
    out = gathered(np.eye(COMPONENTS, dtype=np.float32) * PATCH / slope, len(wide))
    put(encoder.conv_out.weight, out)
    put(encoder.conv_out.bias, -out.sum(axis=1) * height)


def start_decoder(model: Autoencoder, basis: np.ndarray) -> None:
    """Components of 4x4 pixels, 2x2 pixels, pixels."""
    decoder = model.decoder
    widths = [decoder.conv_out.in_channels, decoder.up[0].block[0].conv1.in_channels, decoder.conv_in.out_channels]
    weight, bias = spread(np.eye(COMPONENTS, dtype=np.float32) / PATCH, widths[2], COMPONENTS)
    centre_tap(decoder.conv_in.weight, weight)
    put(decoder.conv_in.bias, bias)
    patches = basis.reshape(2, 2, 2, 2, 3, COMPONENTS).transpose(0, 2, 1, 3, 4, 5).reshape(4, 12, COMPONENTS) * PATCH
    for level, parts in ((2, patches), (1, np.eye(12, dtype=np.float32).reshape(4, 3, 12))):
        upsample = decoder.up[level].upsample.conv1
        channels = upsample.in_channels
        maps = [spread(gathered(part, channels), channels, len(part)) for part in parts]
        centre_tap(upsample.weight, np.concatenate([weight for weight, _ in maps]))
        put(upsample.bias, np.concatenate([bias for _, bias in maps]))
        below = decoder.up[level - 1].block[0]
        put(below.nin_shortcut.weight, carried(len(parts[0]), channels, below.conv1.out_channels))
    slope, _ = swish_line()
    centre_tap(decoder.conv_out.weight, gathered(np.eye(3, dtype=np.float32) / slope, widths[0]))
    put(decoder.conv_out.bias, np.zeros(3))


def swish_line() -> tuple[float, float]:
    """Slope and height of swish at SHIFT."""
    gate = 1 / (1 + math.exp(-SHIFT))
    return gate * (1 + SHIFT * (1 - gate)), SHIFT * gate


def undo_norms(model: Autoencoder, images: Tensor) -> None:
    """Give the norms on the way from pixels to pixels the scale that they take away, one after the other."""
    decoder = model.decoder
    path: list[tuple[nn.Module, int]] = [(model.encoder.norm_out, COMPONENTS), (decoder.adaptive[2], COMPONENTS)]
    path += [(decoder.adaptive[1], 12), (decoder.adaptive[0], 3), (decoder.norm_out, 3)]
    for norm, data in path:
        seen: list[Tensor] = []
        hook = norm.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].detach()))
        with torch.no_grad():
            model.decode(model.encode(images))
        hook.remove()
        groups = seen[0].reshape(len(images), GROUPS, -1)
        scale = groups.std(dim=2, correction=0).mean(dim=0).repeat_interleave(seen[0].shape[1] // GROUPS).numpy()
        if isinstance(norm, AdaptiveGroupNorm):
            for linear, value in ((norm.gamma, scale), (norm.beta, np.zeros_like(scale))):
                put(linear.weight, np.zeros(tuple(linear.weight.shape)))
                put(linear.bias, value)
            continue
        place, negative, _ = slots(len(scale), data)
        held = np.isin(np.arange(len(scale)), np.concatenate([place, negative]))
        put(norm.weight, np.where(held, scale, 0))
        put(norm.bias, np.where(held, SHIFT, 0))


def quiet_blocks(model: Autoencoder, images: Tensor) -> None:
    """Residual blocks see every varying channel in unit scale, and add nothing yet."""
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    seen: dict[int, Tensor] = {}
    hooks = [
        block.norm1.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out.detach()}))
        for i, block in enumerate(blocks)
    ]
    for block in blocks:
        put(block.conv2.weight, np.zeros(tuple(block.conv2.weight.shape)))
    with torch.no_grad():
        model.decode(model.encode(images))
    for hook in hooks:
        hook.remove()
    for number, block in enumerate(blocks):
        deviation = seen[number].std(dim=(0, 2, 3)).numpy()
        mean = seen[number].mean(dim=(0, 2, 3)).numpy()
        varies = deviation > 1e-3
        weight = np.where(varies, 1 / np.maximum(deviation, 1e-3), 0)
        put(block.norm1.weight, weight)
        put(block.norm1.bias, -mean * weight)


def start(config: Any, images: list[np.ndarray]) -> Autoencoder:
    """The network with its first weights: a k-means quantizer of patches."""
    torch.manual_seed(config.seed)
    model = Autoencoder(config.model, config.quantizer)
    basis, centres = components_and_centres(images, config.quantizer.codebook_size)
    start_encoder(model, basis)
    start_decoder(model, basis)
    for conv in (model.quant_conv, model.post_quant_conv):
        put(conv.weight, np.eye(COMPONENTS))
        put(conv.bias, np.zeros(COMPONENTS))
    put(model.codebook, centres)
    sample = next(batches(images, 8, 128, 0))
    undo_norms(model, sample)
    quiet_blocks(model, sample)
    return model


def batches(images: list[np.ndarray], count: int, side: int, seed: int) -> Iterator[Tensor]:
    """Random crops of random photographs, half of them mirrored, channels first in [-1, 1]."""
    generator = np.random.default_rng(seed)
    while True:
        crops = []
        for number in np.concatenate([generator.permutation(len(images)) for _ in range(-(-count // len(images)))]):
            image = images[number]
            top, left = (generator.integers(length - side + 1) for length in image.shape[:2])
            crop = image[top : top + side, left : left + side]
            crops.append(crop[:, ::-1] if generator.random() < 0.5 else crop)
        yield torch.tensor(np.stack(crops[:count]).astype(np.float32) / 127.5 - 1).movedim(-1, 1).contiguous()
