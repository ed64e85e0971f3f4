"""Define the contenders of `benchmark_sampling.py`: ours in JAX and in PyTorch, and plain sampling in PyTorch.

The plain version is eager code as one writes it first: a cache with room for every position that is written in place,
attention over all of it with a mask, and the class's modulation computed wherever it is needed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from voken_common.config.loading import load_any_config
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.sampling import Sampling
from voken_common.config.schema.transformer import TransformerConfig
from voken_common.published.models import config_file, find

EPSILON = 1e-5
WEIGHT = 0.02


@dataclass(frozen=True)
class Case:
    """One measurement: `implementation` is a key of IMPLEMENTATIONS; `batch` samples are 2 * batch rows with guidance.

    With temperature 0 the tokens are those of the largest logits, the same for everybody.
    """

    implementation: str
    model: str = "ibq_generator_B"
    batch: int = 2
    steps: int = 32
    temperature: float = 1.0
    scale: float = 2.25
    dtype: str = "float32"
    device: str = "cpu"
    cores: int = 0
    repeats: int = 5

    @property
    def transformer(self) -> TransformerConfig:
        """The network's configuration: the published one."""
        published = find(self.model)
        config = load_any_config(config_file(published), ["data.train=none"])
        assert isinstance(config, GeneratorConfig)
        return config.model

    @property
    def settings(self) -> Sampling:
        """Hold the settings by which tokens are drawn."""
        parts = len(self.transformer.vocabularies)
        return Sampling((self.scale,) * parts, (self.temperature,) * parts, (0,) * parts, (1.0,) * parts)

    @property
    def labels(self) -> np.ndarray:
        """Classes, all different."""
        return np.arange(self.batch) * 7 % self.transformer.classes


Generate = Callable[[Case], np.ndarray]
"""Tokens (B, T, S) of a case that differs from the prepared one in temperature and steps alone."""


def random_weights(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """Seeded weights under torch names, the same in every process: uniform, of deviation `WEIGHT`, norms around 1."""
    for number, name in enumerate(sorted(shapes)):
        stream = np.random.default_rng(number)
        array = (stream.random(shapes[name], np.float32) - np.float32(0.5)) * np.float32(12**0.5 * WEIGHT)
        yield name, array + np.float32(1) if len(shapes[name]) == 1 and "norm" in name else array


def ours_jax(case: Case) -> Generate:
    """Our sampler: one compiled program."""
    import jax
    import jax.numpy as jnp

    from voken_common.checkpoints import weight_names as names
    from voken_jax.generator.sampling import compiler_options, generate
    from voken_jax.models.functional import Network
    from voken_jax.models.generator import build_generator
    from voken_jax.models.layers import Policy

    dtype = jnp.dtype(case.dtype)
    network = Network(lambda rngs: build_generator(case.transformer, policy=Policy(dtype, dtype), rngs=rngs))
    shapes = {
        names.to_torch_name(name): names.to_torch_layout(name, np.broadcast_to(0, leaf.shape)).shape
        for name, leaf in network.parameters.items()
    }
    weights = {}
    for key, array in random_weights(shapes):
        weights |= {name: jnp.asarray(value, dtype) for name, value in names.to_jax({key: array}).items()}
    labels, keys = jnp.asarray(case.labels, jnp.int32), jax.random.split(jax.random.key(0), case.batch)
    programs: dict[Any, Any] = {}

    def call(case: Case) -> np.ndarray:
        settings, steps = case.settings, case.steps
        program = programs.setdefault(
            (settings, steps),
            jax.jit(
                lambda w, labels, keys: generate(network.bind(w), labels, keys, settings, positions=steps),
                compiler_options=compiler_options(),
            ),
        )
        return np.asarray(program(weights, labels, keys))

    return call


def ours_torch(case: Case) -> Generate:
    """Our sampler in PyTorch."""
    import torch

    from voken_torch.generator.sampling import generate
    from voken_torch.models.generator import build_generator

    network, device = _torch_model(case, build_generator)
    labels = torch.from_numpy(case.labels).to(device)
    return lambda case: (
        generate(network, labels, range(case.batch), case.settings, positions=case.steps, graphs=True).cpu().numpy()
    )


def plain_torch(case: Case) -> Generate:
    """The plain way: `Plain` on the same weights."""
    import torch

    from voken_torch.models.generator import build_generator

    network, device = _torch_model(case, build_generator)
    plain = Plain(case.transformer, dict(network.state_dict()))
    labels = torch.from_numpy(case.labels).to(device)
    return lambda case: plain.generate(labels, case).cpu().numpy()


def _torch_model(case: Case, build: Callable[[TransformerConfig], Any]) -> tuple[Any, Any]:
    import torch

    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    with torch.device("meta"):
        network = build(case.transformer)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    weights = {name: torch.from_numpy(array).to(device, dtype) for name, array in random_weights(shapes)}
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval(), device


class Plain:
    """Both generators as functions of a state dict, one position per call."""

    def __init__(self, config: TransformerConfig, weights: dict[str, Any]):
        self.config, self.weights = config, weights

    def generate(self, labels: Any, case: Case) -> Any:
        """Tokens (B, steps, S)."""
        import torch

        with torch.inference_mode():
            config, count = self.config, len(labels)
            both = torch.cat([labels, torch.full_like(labels, config.classes)])
            self.condition = self.weights["class_emb.embedding_table.weight"][both]
            self.rows = self._rotary()
            caches = self._caches(config.layers, config.tokens)
            x, tokens = self.condition[:, None], []
            for position in range(case.steps):
                chosen, x = self._position(x, caches, position, count, case)
                tokens.append(chosen)
            return torch.stack(tokens, dim=1)

    def _position(self, x: Any, caches: list, position: int, count: int, case: Case) -> tuple[Any, Any]:
        import torch

        if self.config.network == "adaptive":
            x = self._layers("blocks", x, caches, position)
            chosen = self._choose(self._linear("head", self._head_norm(x)), count, case)
            return chosen[:count, None], self.weights["tok_emb.weight"][chosen][:, None]
        hidden = self._layers("spatial_blocks", x, caches, position)
        inner, chosen = self._caches(self.config.factorized_layers, 2), []
        for part in range(2):
            step = hidden if part == 0 else self.weights["pre_emb.weight"][chosen[0]][:, None]
            out = self._norm("norm", self._layers("factorized_blocks", step, inner, part))
            chosen.append(self._choose(self._linear(f"head.{part}", out), count, case))
        pre, post = chosen
        x = self.weights["pre_emb.weight"][pre] + self.weights["post_emb.weight"][post]
        return torch.stack(chosen, dim=-1)[:count], x[:, None]

    def _layers(self, name: str, x: Any, caches: list, position: int) -> Any:
        import torch
        import torch.nn.functional as F

        config = self.config
        for number, (keys, values) in enumerate(caches):
            layer = f"{name}.{number}"
            one, zero = torch.ones_like(x[:, :, :1]), torch.zeros_like(x[:, :, :1])
            gates, scales, shifts = (one, one), (zero, zero), (zero, zero)
            if config.network == "adaptive":
                six = self._linear(f"{layer}.ada_lin.1", F.silu(self.condition))[:, None].chunk(6, dim=-1)
                gates, scales, shifts = six[:2], six[2:4], six[4:]
            normed = self._norm(f"{layer}.attention_norm", x) * (1 + scales[0]) + shifts[0]
            qkv = self._linear(f"{layer}.attention.wqkv", normed)
            q, k, v = (part.unflatten(-1, (config.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
            q, k = self._rotate(q, position), self._rotate(k, position)
            keys[:, :, position] = k[:, :, 0]
            values[:, :, position] = v[:, :, 0]
            mask = torch.arange(keys.shape[2], device=x.device) <= position
            mixed = F.scaled_dot_product_attention(q, keys, values, mask[None])
            x = x + gates[0] * self._linear(f"{layer}.attention.wo", mixed.transpose(1, 2).flatten(2))
            normed = self._norm(f"{layer}.ffn_norm", x) * (1 + scales[1]) + shifts[1]
            inner = F.silu(self._linear(f"{layer}.feed_forward.w1", normed))
            inner = inner * self._linear(f"{layer}.feed_forward.w3", normed)
            x = x + gates[1] * self._linear(f"{layer}.feed_forward.w2", inner)
        return x

    def _head_norm(self, x: Any) -> Any:
        import torch.nn.functional as F

        scale, shift = self._linear("head_nm.ada_lin.1", F.silu(self.condition))[:, None].chunk(2, dim=-1)
        return self._norm("head_nm.rmsnorm", x) * (1 + scale) + shift

    def _choose(self, logits: Any, count: int, case: Case) -> Any:
        import torch

        with_class, without = logits[:, 0].float().split(count)
        guided = without + case.scale * (with_class - without)
        if case.temperature == 0:
            chosen = guided.argmax(dim=-1)
        else:
            chosen = torch.multinomial((guided / case.temperature).softmax(dim=-1), 1)[:, 0]
        return torch.cat([chosen, chosen])

    def _linear(self, name: str, x: Any) -> Any:
        import torch.nn.functional as F

        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Any) -> Any:
        import torch

        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(x) * self.weights[
            f"{name}.weight"
        ]

    def _caches(self, layers: int, positions: int) -> list[tuple[Any, Any]]:
        shape = (len(self.condition), self.config.heads, positions, self.config.head_width)
        return [(self.condition.new_zeros(shape), self.condition.new_zeros(shape)) for _ in range(layers)]

    def _rotary(self) -> Any:
        import torch

        grid, quarter = self.config.grid, self.config.head_width // 4
        numbers = torch.arange(max(grid, quarter), dtype=torch.float32, device=self.condition.device)
        angles = numbers[:grid, None] * 10000.0 ** (-4 * numbers[:quarter] / self.config.head_width)
        cells = torch.cat([angles.repeat_interleave(grid, 0), angles.repeat(grid, 1)], dim=1)
        turns = torch.polar(torch.ones_like(cells), cells)
        return torch.cat([torch.zeros_like(turns[:1]), turns])

    def _rotate(self, x: Any, position: int) -> Any:
        import torch

        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.rows[position]).flatten(-2).to(x)


def bandwidth(gigabytes: float = 1.0, repeats: int = 5, device: str = "cpu") -> dict[str, float]:
    """Bytes per second of copying (read and written), of a sum, and of a matrix-vector product over fresh memory."""
    import torch

    place = torch.device(device)
    width = 4096
    source = torch.ones((int(gigabytes * 2**28) // width, width), device=place)
    target, vector = torch.zeros_like(source), torch.ones(width, device=place)
    jobs: dict[str, tuple[Callable[[], Any], int]] = {
        "copy": (lambda: target.copy_(source), 2),
        "sum": (lambda: source.sum(), 1),
        "matrix-vector": (lambda: source @ vector, 1),
    }
    found = {}
    for name, (job, times) in jobs.items():
        job()
        found[name] = times * source.nbytes / min(seconds(job, device) for _ in range(repeats))
    return found


def seconds(job: Callable[[], Any], device: str = "cpu") -> float:
    """Time of one call, until its result is there."""
    import torch

    start = time.perf_counter()
    job()
    if device != "cpu":
        torch.get_device_module(torch.device(device)).synchronize()
    return time.perf_counter() - start


def bytes_per_step(case: Case) -> tuple[int, int]:
    """(weights, cache) that a step has to read at least: every weight that meets a position's features once, however
    many rows there are, and the keys and values of the positions before it, on average over the steps.
    """
    config, size = case.transformer, {"float32": 4, "bfloat16": 2}[case.dtype]
    width = config.width
    block = 4 * width * width + 3 * width * config.feed_forward_width + 2 * width
    blocks = config.layers + len(config.vocabularies) * config.factorized_layers
    weights = blocks * block + width * sum(config.vocabularies)
    positions = sum(range(1, case.steps + 1)) / case.steps
    cache = config.layers * 2 * (2 * case.batch) * width * positions
    return size * weights, int(size * cache)


def greedy(case: Case) -> Case:
    """Return the same case with greedy choices, for a few steps."""
    return replace(case, temperature=0.0, steps=8)


IMPLEMENTATIONS: dict[str, Callable[[Case], Generate]] = {
    "ours_jax": ours_jax,
    "ours_torch": ours_torch,
    "plain_torch": plain_torch,
}
