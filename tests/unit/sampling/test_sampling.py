"""Sampling in both frameworks: cached against uncached, frequencies against probabilities, seeds, filters' settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from voken_common.checkpoints import weight_names as names
from voken_common.config.schema.sampling import Sampling
from voken_common.config.schema.transformer import TransformerConfig
from voken_jax.generator import sampling as jax_sampling
from voken_jax.models.functional import Network
from voken_jax.models.generator import build_generator as build_jax
from voken_jax.models.layers import Policy
from voken_torch.device import graphs
from voken_torch.generator import sampling as torch_sampling
from voken_torch.models.generator import build_generator as build_torch

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CLASSES = 3
FAMILIES = {
    "adaptive": {"network": "adaptive", "vocabularies": (5,)},
    "factorized": {"network": "factorized", "vocabularies": (3, 4), "factorized_layers": 1},
}
GUIDANCE = ["constant", "linear", "power-cosine"]


class Model:
    """One tiny network in float64 in one of the frameworks, with the weights that the other has, too."""

    def __init__(self, family, grid):
        self.config = TransformerConfig(
            **FAMILIES[family], grid=grid, classes=CLASSES, layers=2, heads=2, width=16, multiple_of=16
        )
        random = np.random.default_rng(7)
        self.torch = build_torch(self.config).double().eval().requires_grad_(False)
        weights = {name: random.normal(0, 0.5, value.shape) for name, value in self.torch.state_dict().items()}
        self.torch.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        policy = Policy(jnp.dtype("float64"), jnp.dtype("float64"))
        self.network = Network(lambda rngs: build_jax(self.config, policy=policy, rngs=rngs))
        self.weights = {name: jnp.asarray(value) for name, value in names.to_jax(weights).items()}
        self._programs = {}

    def generate(self, framework, labels, seeds, settings, **options):
        """Tokens (B, T, S)."""
        if framework == "torch":
            return torch_sampling.generate(self.torch, torch.tensor(labels), seeds, settings, **options).numpy()
        keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
        program = self._programs.setdefault(
            (settings, *options.items()),
            jax.jit(
                lambda w, labels, keys: jax_sampling.generate(self.network.bind(w), labels, keys, settings, **options)
            ),
        )
        return np.asarray(program(self.weights, jnp.asarray(labels), keys))

    def guided(self, tokens, labels, settings):
        """Guided logits of whole sequences by the network without a cache: per part (B, T, V)."""
        tokens, labels = torch.from_numpy(tokens).long(), torch.tensor(labels)
        with_class = self.torch(tokens, labels)
        without = self.torch(tokens, torch.full_like(labels, CLASSES))
        positions = self.config.tokens
        result = []
        for scale, a, b in zip(settings.scale, with_class, without, strict=True):
            scales = [torch_sampling.guidance_scale(scale, settings.guidance, n, positions) for n in range(positions)]
            result.append(b + torch.tensor(scales)[:, None].double() * (a - b))
        return result


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    with jax.enable_x64(True):
        yield Model(request.param, grid=4)


@pytest.fixture(scope="module", params=list(FAMILIES))
def small(request):
    with jax.enable_x64(True):
        yield Model(request.param, grid=2)


@pytest.fixture(params=["jax", "torch"])
def framework(request, monkeypatch):
    # Two segments of the cache in sixteen positions.
    monkeypatch.setattr(jax_sampling, "SEGMENT", 9)
    return request.param


def settings_of(model, scale=1.0, temperature=1.0, top_k=0, top_p=1.0, guidance="constant"):
    parts = len(model.config.vocabularies)
    return Sampling((scale,) * parts, (temperature,) * parts, (top_k,) * parts, (top_p,) * parts, guidance)


@functools.partial(jax.jit, static_argnums=(3, 4))
def draw_in_jax(logits, keys, number, settings, part):
    own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    return jax_sampling.draw(logits, own, settings, part)


def drawn_uncached(model, framework, tokens, labels, seeds, settings):
    """What would be drawn from the logits that whole sequences of these tokens have, with the same random numbers."""
    drawn, parts = np.zeros_like(tokens), tokens.shape[2]
    uniforms = torch_sampling.uniforms(seeds, model.config.tokens, parts)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    for part, logits in enumerate(model.guided(tokens, labels, settings)):
        for position in range(model.config.tokens):
            if framework == "torch":
                found = torch_sampling.draw(logits[:, position], uniforms[:, position, part, None], settings, part)
            else:
                found = draw_in_jax(
                    jnp.asarray(logits[:, position].numpy()), keys, position * parts + part, settings, part
                )
            drawn[:, position, part] = np.asarray(found)
    return drawn


@pytest.mark.parametrize(
    ("scale", "guidance", "temperature"),
    [(1.0, "constant", 0.0), *((2.5, kind, 3.0) for kind in GUIDANCE)],
)
def test_tokens_through_the_cache_are_those_without_it(model, framework, scale, guidance, temperature):
    labels, seeds = [2, 0, 1], [4, 5, 6]
    settings = settings_of(model, scale, temperature, guidance=guidance)
    tokens = model.generate(framework, labels, seeds, settings).astype(np.int64)
    np.testing.assert_array_equal(drawn_uncached(model, framework, tokens, labels, seeds, settings), tokens)
    if temperature:
        assert all(len(np.unique(tokens[:, half])) > 2 for half in (slice(0, 8), slice(8, 16)))


def test_guidance_schedules_give_different_samples(model):
    labels, seeds = [0, 1, 2] * 4, list(range(12))
    settings = [settings_of(model, 4.0, 2.0, guidance=kind) for kind in GUIDANCE]
    assert len({model.generate("torch", labels, seeds, each).tobytes() for each in settings}) == 3


def test_guidance_schedules_grow_from_one_to_the_scale():
    for kind in GUIDANCE[1:]:
        ours = [torch_sampling.guidance_scale(3.0, kind, number, 9) for number in range(9)]
        theirs = [float(jax_sampling.guidance_scale(3.0, kind, jnp.asarray(number), 9)) for number in range(9)]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert ours[0] == 1
        assert ours[-1] == pytest.approx(3)
        assert np.all(np.diff(ours) > 0)
    assert torch_sampling.guidance_scale(3.0, "linear", 4, 9) == pytest.approx(2)
    # (1 - cos(pi / 2^2.75)) / 2 of the way
    middle = 1 + 2 * 0.5 * (1 - np.cos(np.pi * 0.5**2.75))
    assert torch_sampling.guidance_scale(3.0, "power-cosine", 4, 9) == pytest.approx(middle)


def p_value(model, tokens, label, settings, position, part, drawn_with):
    """Of the drawn codes at one (sub-)position, given all codes before them, under the filtered softmax."""
    prefix = tokens.reshape(len(tokens), -1)[:, : position * tokens.shape[2] + part]
    groups, index = np.unique(prefix, axis=0, return_inverse=True)
    examples = np.stack([tokens[np.argmax(index == group)] for group in range(len(groups))])
    logits = model.guided(examples, [label] * len(examples), settings)[part][:, position]
    kept = torch_sampling.filter_logits(
        logits / drawn_with.temperature[part], drawn_with.top_k[part], drawn_with.top_p[part]
    )
    statistic, freedom = 0.0, 0
    for group, expected in enumerate(kept.softmax(dim=-1).numpy()):
        found = np.bincount(tokens[index == group, position, part], minlength=len(expected))
        count, possible = found.sum(), expected > 0
        assert not found[~possible].any(), "a code that the filters remove was drawn"
        if count * expected[possible].min() < 5:
            continue
        statistic += ((found - count * expected)[possible] ** 2 / (count * expected[possible])).sum()
        freedom += possible.sum() - 1
    assert freedom > 0
    return stats.chi2.sf(statistic, freedom)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 0.9)])
def test_frequencies_are_those_of_the_filtered_softmax(small, framework, top_k, top_p):
    count, label = 6000, 1
    settings = settings_of(small, 1.5, 1.6, top_k, top_p, "linear")
    tokens = small.generate(framework, [label] * count, range(count), settings).astype(np.int64)
    places = [(0, 0), (1, 0), (2, 0)] + [(0, 1), (1, 1)] * (tokens.shape[2] == 2)
    for position, part in places:
        assert p_value(small, tokens, label, settings, position, part, settings) > 1e-3, (position, part)
    other = settings_of(small, 1.5, 2.4, top_k, 1.0, "linear")
    assert min(p_value(small, tokens, label, settings, *place, other) for place in places) < 1e-6


def test_a_sample_does_not_depend_on_its_batch(model, framework):
    settings = settings_of(model, 2.5, 3.0, guidance="linear")
    labels, seeds = [0, 1, 1], [5, 6, 7]
    together = model.generate(framework, labels, seeds, settings)
    for number in range(3):
        alone = model.generate(framework, labels[number : number + 1], seeds[number : number + 1], settings)
        np.testing.assert_array_equal(alone[0], together[number])
    assert (together[1] != together[2]).any()


def test_positions_stop_early(model, framework):
    settings = settings_of(model, 2.5, 3.0, guidance="linear")
    whole = model.generate(framework, [0, 1, 2], [1, 2, 3], settings)
    np.testing.assert_array_equal(model.generate(framework, [0, 1, 2], [1, 2, 3], settings, positions=7), whole[:, :7])


def test_one_program_for_all_positions_gives_the_same_tokens(model):
    """What a device records: the position is a tensor, and the whole cache is read under a mask."""
    settings = settings_of(model, 2.0, top_k=3, guidance="power-cosine")
    labels = torch.tensor([2, 0])
    expected = torch_sampling.generate(model.torch, labels, [3, 4], settings)
    with torch.inference_mode():
        loop = torch_sampling._Loop(model.torch, labels, [3, 4], settings, None)
        for number in range(model.config.tokens):
            loop(torch.tensor([number]))
    torch.testing.assert_close(loop.tokens, expected, rtol=0, atol=0)


def test_a_cache_of_half_precision(model, framework):
    """Rounded keys and values change logits by a little, so that most tokens stay."""
    settings = settings_of(model, temperature=0.0)
    dtype = torch.bfloat16 if framework == "torch" else jnp.bfloat16
    exact = model.generate(framework, [0, 1, 2], [0, 1, 2], settings)
    rounded = model.generate(framework, [0, 1, 2], [0, 1, 2], settings, cache_dtype=dtype)
    assert (exact[:, :4] == rounded[:, :4]).mean() > 0.8
    if framework == "torch":
        cache = model.torch.caches(3, torch.zeros(1, dtype=torch.float64), dtype)[0]
    else:
        cache = model.network.bind(model.weights).caches(3, 2, dtype)[0]
    assert cache.keys.dtype == dtype


def test_few_rows_are_multiplied_as_many_are():
    layer = build_torch(TransformerConfig(**FAMILIES["adaptive"], grid=2, layers=1, heads=2, width=16)).head
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(3, 1, 16)
    expected = torch.nn.functional.linear(x, layer.weight)
    with torch.inference_mode():
        found = layer(x)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)


class Device:
    """Stands for `torch.cuda` of a machine that has one."""

    class CUDAGraph:
        def replay(self):
            """Nothing to replay."""

    def __init__(self, refuses=False):
        self.refuses = refuses

    class Stream:
        def wait_stream(self, other):
            """Waits for nothing."""

    def current_stream(self):
        return self.Stream()

    def stream(self, stream):
        return torch.no_grad()

    def graph(self, graph):
        if self.refuses:
            raise RuntimeError("capturing is not permitted here")
        return torch.no_grad()


def test_a_device_records_or_says_why_not(monkeypatch):
    calls = []
    function = lambda: calls.append(1)  # noqa: E731
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert graphs.captured(function, cpu) is function
    monkeypatch.setattr(torch, "get_device_module", lambda device: Device())
    assert graphs.captured(function, gpu) is not function
    assert len(calls) == 3
    monkeypatch.setattr(torch, "get_device_module", lambda device: Device(refuses=True))
    with pytest.warns(UserWarning, match="cuda:0 records no graph .capturing is not permitted here."):
        assert graphs.captured(function, gpu) is function
    monkeypatch.setattr(torch, "get_device_module", lambda device: object())
    assert graphs.captured(function, gpu) is function
