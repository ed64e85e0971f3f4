"""Both generators: logits, losses, every gradient norm, and greedy tokens with and without guidance."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.support.golden_cases import FORWARD_FLOAT32, assert_close, assert_numbers, uniform, weights_for
from voken_common.checkpoints import weight_names as names
from voken_common.config.schema.sampling import Sampling
from voken_common.config.schema.transformer import TransformerConfig
from voken_jax.generator.sampling import filter_logits, generate
from voken_jax.models.functional import Network
from voken_jax.models.generator import build_generator
from voken_jax.models.layers import Policy

KINDS = ["ar_magvit2", "ar_ibq", "top_k_top_p"]

SUB_TOKENS = {"ar_magvit2": ("pre", "post"), "ar_ibq": ("idx",)}


def kinds(*names):
    """Cases of these kinds alone."""

    def mark(function):
        function.kinds = names
        return function

    return mark


def transformer_config(config):
    """Our configuration of a case's."""
    factorized = "factorized_bits" in config
    bits = config.get("factorized_bits")
    values = {
        "network": "factorized" if factorized else "adaptive",
        "vocabularies": [2**b for b in bits] if factorized else [config["vocab_size"]],
        "grid": math.isqrt(config["block_size"]),
        "classes": config["class_num"],
        "layers": config["spatial_n_layer"] if factorized else config["n_layer"],
        "factorized_layers": config["factorized_n_layer"] if factorized else 0,
        "heads": config["n_head"],
        "width": config["dim"] if factorized else config["n_embd"],
        "multiple_of": config["multiple_of"],
        "token_dropout": config["token_drop"],
        "residual_dropout": config["resid_dropout_p"],
        "feed_forward_dropout": config["ffn_dropout_p"],
    }
    return TransformerConfig.model_validate_json(json.dumps(values))


def tokens_of(config, parts, batch, seed, suffix=""):
    """(B, T, S) tokens by the recipe."""
    shape = (batch, config.tokens)
    return np.stack(
        [
            np.floor((uniform(shape, seed, name + suffix) / np.sqrt(3) + 1) / 2 * codes).astype(np.int32)
            for name, codes in zip(parts, config.vocabularies, strict=True)
        ],
        axis=-1,
    )


def setup(case, dtype):
    """The network, its weights, tokens and labels."""
    config = transformer_config(case.config["config"])
    policy = Policy(jnp.dtype(dtype), jnp.dtype(dtype))
    network = Network(lambda rngs: build_generator(config, policy=policy, rngs=rngs))
    weights = weights_for(network.parameters, case.seed, dtype=dtype)
    tokens = tokens_of(config, SUB_TOKENS[case.kind], case.config["batch"], case.seed)
    return network, weights, jnp.asarray(tokens), jnp.asarray(case.config["labels"], jnp.int32)


@kinds("ar_magvit2", "ar_ibq")
def test_names_and_shapes(case):
    network, *_ = setup(case, "float32")
    found = {
        names.to_torch_name(n): list(names.to_torch_layout(n, np.empty(s.shape)).shape)
        for n, s in network.parameters.items()
    }
    assert found == case.config["shapes"]


@kinds("ar_magvit2", "ar_ibq")
def test_logits_and_losses(case, precision):
    network, weights, tokens, labels = setup(case, precision)
    logits = jax.jit(lambda w: network.bind(w)(tokens, labels))(weights)
    tolerance = None if precision == "float64" else FORWARD_FLOAT32
    suffixes = ["_pre", "_post"] if case.kind == "ar_magvit2" else [""]
    for i, suffix in enumerate(suffixes):
        assert_close(logits[i], case.arrays[f"out/logits{suffix}"], f"logits{suffix}", tolerance)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits[i], tokens[..., i]).mean()
        assert_close(loss, case.arrays[f"out/loss{suffix}"], f"loss{suffix}", tolerance)


@kinds("ar_magvit2", "ar_ibq")
def test_gradient_norms(case, x64):
    network, weights, tokens, labels = setup(case, "float64")

    def loss(weights):
        logits = network.bind(weights)(tokens, labels)
        return sum(
            optax.softmax_cross_entropy_with_integer_labels(part, tokens[..., i]).mean()
            for i, part in enumerate(logits)
        )

    gradients = jax.jit(jax.grad(loss))(weights)
    norms = {names.to_torch_name(name): np.linalg.norm(g) for name, g in gradients.items()}
    assert_numbers(norms, case.config["grad_norms"], "gradient norm")


def greedy_uncached(network, weights, labels, scale):
    """Greedy tokens by the whole-sequence network alone: what the cache must not change."""
    config = network.bind(weights).config
    apply = jax.jit(lambda w, tokens, labels: network.bind(w)(tokens, labels))
    tokens = np.zeros((len(labels), config.tokens, len(config.vocabularies)), np.int32)
    none = jnp.full_like(labels, config.classes)
    for position in range(config.tokens):
        for part in range(tokens.shape[-1]):
            logits = apply(weights, tokens, labels)[part][:, position]
            if scale != 1:
                without = apply(weights, tokens, none)[part][:, position]
                logits = without + scale * (logits - without)
            tokens[:, position, part] = np.asarray(logits.argmax(axis=-1))
    return tokens


@kinds("ar_magvit2", "ar_ibq")
def test_greedy_tokens_through_the_cache_and_without_it(case, x64):
    network, weights, _, labels = setup(case, "float64")
    keys = jax.random.split(jax.random.key(0), len(labels))
    parts = SUB_TOKENS[case.kind]
    found = {}
    for key, stored in case.arrays.items():
        if not key.startswith("out/greedy"):
            continue
        scale = float(key.rpartition("cfg")[2])
        part = next((i for i, name in enumerate(parts) if f"_{name}_" in key), 0)
        if scale not in found:
            settings = Sampling((scale,) * len(parts), (0.0,) * len(parts), (0,) * len(parts), (1.0,) * len(parts))
            sample = jax.jit(lambda w, settings=settings: generate(network.bind(w), labels, keys, settings))
            found[scale] = np.asarray(sample(weights))
            np.testing.assert_array_equal(found[scale], greedy_uncached(network, weights, labels, scale))
        np.testing.assert_array_equal(found[scale][..., part], stored, err_msg=key)
    assert found


def filtered_logits(case):
    """What a case filters, by its own words: `2*uniform((4,50),seed,"logits")`."""
    factor, shape, name = re.fullmatch(
        r'([\d.]+)\*uniform\(\(([\d, ]+)\), ?seed, ?"(\w+)"\)', case.config["logits"]
    ).groups()
    return float(factor) * uniform(tuple(map(int, shape.split(","))), case.seed, name)


@kinds("top_k_top_p")
def test_filters(case, precision):
    logits = jnp.asarray(filtered_logits(case), precision)
    for number, (top_k, top_p) in enumerate(case.config["settings"]):
        probabilities = jax.nn.softmax(filter_logits(logits, top_k, top_p))
        tolerance = None if precision == "float64" else FORWARD_FLOAT32
        assert_close(probabilities, case.arrays[f"out/probs_{number}"], f"top-k {top_k}, top-p {top_p}", tolerance)
