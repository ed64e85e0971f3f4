"""Both generators in PyTorch: logits, losses, gradient norms, greedy tokens, filters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity.test_generators import SUB_TOKENS, filtered_logits, kinds, tokens_of, transformer_config
from tests.support.golden_cases import FORWARD_FLOAT32, assert_close, assert_numbers, weight
from voken_common.config.schema.sampling import Sampling
from voken_torch.generator.sampling import filter_logits, generate
from voken_torch.models.generator import build_generator

KINDS = ["ar_magvit2", "ar_ibq", "top_k_top_p"]


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    return request.param


def setup(case, dtype="float64"):
    """The network with the recipe's weights, tokens and labels."""
    config = transformer_config(case.config["config"])
    dtype = getattr(torch, dtype)
    network = build_generator(config).to(dtype).eval()
    weights = {name: weight(name, value.shape, case.seed) for name, value in network.state_dict().items()}
    assert {name: list(array.shape) for name, array in weights.items()} == case.config["shapes"]
    network.load_state_dict({name: torch.from_numpy(array).to(dtype) for name, array in weights.items()})
    tokens = tokens_of(config, SUB_TOKENS[case.kind], case.config["batch"], case.seed)
    return network, torch.from_numpy(tokens).long(), torch.tensor(case.config["labels"])


def losses(logits, tokens):
    return [F.cross_entropy(part.flatten(0, 1), tokens[..., i].flatten()) for i, part in enumerate(logits)]


@kinds("ar_magvit2", "ar_ibq")
def test_logits_losses_and_gradients(case, precision):
    network, tokens, labels = setup(case, precision)
    logits = network(tokens, labels)
    tolerance = None if precision == "float64" else FORWARD_FLOAT32
    parts = losses(logits, tokens)
    for i, suffix in enumerate(["_pre", "_post"] if case.kind == "ar_magvit2" else [""]):
        assert_close(logits[i].detach(), case.arrays[f"out/logits{suffix}"], f"logits{suffix}", tolerance)
        assert_close(parts[i].detach(), case.arrays[f"out/loss{suffix}"], f"loss{suffix}", tolerance)
    if precision == "float64":
        sum(parts).backward()
        norms = {name: p.grad.norm().item() for name, p in network.named_parameters()}
        assert_numbers(norms, case.config["grad_norms"], "gradient norm")


@kinds("ar_magvit2", "ar_ibq")
def test_greedy_tokens(case):
    network, _, labels = setup(case)
    parts = SUB_TOKENS[case.kind]
    stored = {key: value for key, value in case.arrays.items() if key.startswith("out/greedy")}
    for key, expected in stored.items():
        scale, count = float(key.rpartition("cfg")[2]), len(parts)
        settings = Sampling((scale,) * count, (0.0,) * count, (0,) * count, (1.0,) * count)
        part = next((i for i, name in enumerate(parts) if f"_{name}_" in key), 0)
        found = generate(network, labels, range(len(labels)), settings)
        np.testing.assert_array_equal(found[..., part], expected, err_msg=key)
    assert stored


@kinds("top_k_top_p")
def test_filters(case, precision):
    logits = torch.from_numpy(filtered_logits(case)).to(getattr(torch, precision))
    for number, (top_k, top_p) in enumerate(case.config["settings"]):
        probabilities = filter_logits(logits, top_k, top_p).softmax(dim=-1)
        tolerance = None if precision == "float64" else FORWARD_FLOAT32
        assert_close(probabilities, case.arrays[f"out/probs_{number}"], f"top-k {top_k}, top-p {top_p}", tolerance)
