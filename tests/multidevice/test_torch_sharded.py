"""Weights split over two processes on the CPU (FSDP2 over gloo): the numbers of one process, and whole checkpoints."""

import os
import socket
import types

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from tests.unit.tokenizer.test_torch_step import assert_same, build, config_of, flat, images_of
from voken_common.config.loading import validate_any
from voken_common.config.schedules import build_schedule
from voken_torch.device import runtime as device
from voken_torch.generator.step import GeneratorStep, create_generator_state, evaluation_generator
from voken_torch.parallel import sharding
from voken_torch.tokenizer.state import averaged_autoencoder

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")

STEPS = 2
SMALL = {"resolution": 8, "channel_multipliers": [1], "attention_resolutions": []}
TOKENIZERS = {
    "lfq": config_of("lfq", "patchgan", model=SMALL),
    "adaptive": config_of("ibq", "patchgan", model=SMALL, adversarial={"generator_weight": None, "lecam_weight": 0.5}),
    "micro-batches": config_of(
        "ibq", "patchgan", model=SMALL, optimizer={"gradient_accumulation": 2, "gradient_clip": 0.1}
    ),
}


def generator_of(network, **sections):
    """A tiny generator without dropout, whose random numbers differ between processes."""
    parts = 2 if network == "factorized" else 1
    dropout = dict.fromkeys(("token_dropout", "residual_dropout", "feed_forward_dropout", "label_dropout"), 0.0)
    model = {"network": network, "vocabularies": [5, 7][:parts], "grid": 2, "classes": 3, "layers": 2, "heads": 2}
    model |= {"width": 8, "multiple_of": 4, "factorized_layers": parts - 1}
    double = {"param_dtype": "float64", "compute_dtype": "float64"}
    mapping = {
        "kind": "generator",
        "name": "tiny",
        "model": model | dropout,
        "optimizer": {"learning_rate": 1e-2, "ema_decay": 0.9, "decay_all": False, "weight_decay": 0.1},
        "precision": double,
        "data": {"train": "none"},
        "training": {"batch_size": 8, "steps": 10},
        "validation": {"batch_size": 8},
        "sampling": {
            "scale": [1.0] * parts,
            "temperature": [1.0] * parts,
            "top_k": [0] * parts,
            "top_p": [1.0] * parts,
        },
    }
    for name, values in sections.items():
        mapping[name] = mapping[name] | values
    return validate_any(mapping, origin="test")


GENERATORS = {
    "factorized": generator_of("factorized"),
    "recomputed micro-batches": generator_of(
        "adaptive",
        precision={"remat": True},
        optimizer={"learning_rate": 1e-2, "ema_decay": 0.9, "gradient_accumulation": 2, "gradient_clip": 0.05},
    ),
}

OF_FOUR = ("lfq", "adaptive", "factorized", "recomputed micro-batches")
"""Whose batches four processes can share."""


def split(config, fsdp=2):
    return config.model_copy(update={"mesh": config.mesh.model_copy(update={"fsdp": fsdp})})


def tokens_of(config, seed):
    random = np.random.default_rng(seed)
    shape = (config.training.batch_size, config.model.tokens)
    tokens = np.stack([random.integers(0, codes, shape) for codes in config.model.vocabularies], axis=-1)
    return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(random.integers(0, 3, shape[:1]))}


def share(batch):
    """This process's part, in one piece."""
    index, count = sharding.process_index(), sharding.process_count()
    if isinstance(batch, dict):
        return {name: share(value) for name, value in batch.items()}
    return batch.chunk(count)[index]


def start(config):
    """(step, state, batches) of either kind."""
    if config.kind == "tokenizer":
        return *build(config), [images_of(seed, size=8) for seed in range(STEPS)]
    state, total = create_generator_state(config), config.training.steps
    step = GeneratorStep(config, state, build_schedule(config, 1, total), total)
    return step, state, [tokens_of(config, seed) for seed in range(STEPS)]


def run(config):
    """Metrics of every step, the final state, and the weights that an evaluation sees, on the first process."""
    step, state, batches = start(config)
    metrics = [flat(step(state, share(batch))) for batch in batches]
    averaged = averaged_autoencoder if config.kind == "tokenizer" else evaluation_generator
    seen = averaged(config, state).state_dict()
    values = sharding.gathered(state.to_dict())
    return (metrics, flat(values), seen) if sharding.process_index() == 0 else None


def sizes(config):
    """(numbers that this process holds of the parameters, moments and averages, those of the whole)."""
    _, state, _ = start(config)
    values = state.to_dict()
    optimizer = values["generator_optimizer" if config.kind == "tokenizer" else "optimizer"]
    groups = (values["generator"], values["generator_ema"], optimizer["mu"], optimizer["nu"])
    tensors = [tensor for group in groups for tensor in group.values()]
    return sum(sharding.local(tensor).numel() for tensor in tensors), sum(tensor.numel() for tensor in tensors)


def resumed(config, path):
    """One step more after a state that other processes wrote."""
    step, state, batches = start(config)
    state.load_dict(torch.load(path, weights_only=True))
    metrics = flat(step(state, share(batches[0])))
    values = sharding.gathered(state.to_dict())
    return (metrics, flat(values)) if sharding.process_index() == 0 else None


def worker(rank, port, folder, processes):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(processes)
    torch.set_num_threads(1)
    device.start("cpu")
    chosen = TOKENIZERS | GENERATORS if processes == 2 else {name: (TOKENIZERS | GENERATORS)[name] for name in OF_FOUR}
    results = {name: run(split(config)) for name, config in chosen.items()}
    results["sizes"] = [sizes(split(config)) for config in (TOKENIZERS["lfq"], GENERATORS["factorized"])]
    if processes == 2:
        results["resumed"] = {
            name: resumed(split(config), f"{folder}/{name}.state")
            for name, config in {"lfq": TOKENIZERS["lfq"], "factorized": GENERATORS["factorized"]}.items()
        }
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def started(folder, processes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(worker, (port, str(folder), processes), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes found; a state of one process is there for them to continue."""
    folder = tmp_path_factory.mktemp("processes")
    for name, config in {"lfq": TOKENIZERS["lfq"], "factorized": GENERATORS["factorized"]}.items():
        step, state, batches = start(config)
        step(state, batches[1])
        torch.save(state.to_dict(), folder / f"{name}.state")
    return folder, started(folder, 2)


def assert_equal_to_one_process(found, config):
    expected_metrics, expected_state, expected_seen = run(config)
    metrics, state, seen = found
    for ours, theirs in zip(metrics, expected_metrics, strict=True):
        assert_same(ours, theirs, 1e-8)
    assert_same(state, expected_state, 1e-7)
    assert_same(dict(seen), dict(expected_seen), 1e-7)


@pytest.mark.parametrize("name", TOKENIZERS | GENERATORS)
def test_split_weights_train_like_whole_ones(both, name):
    assert_equal_to_one_process(both[1][0][name], (TOKENIZERS | GENERATORS)[name])


def test_every_process_holds_half(both):
    for results in both[1]:
        for own, all_of_them in results["sizes"]:
            # First axes of odd length cannot be halved.
            assert own == pytest.approx(all_of_them / 2, rel=0.05)
    for tokenizer_or_generator in range(2):
        total = sum(results["sizes"][tokenizer_or_generator][0] for results in both[1])
        assert total == both[1][0]["sizes"][tokenizer_or_generator][1]


@pytest.mark.parametrize("name", ["lfq", "factorized"])
def test_a_whole_state_continues_split(both, name):
    folder, results = both
    expected_metrics, expected_state = resumed((TOKENIZERS | GENERATORS)[name], folder / f"{name}.state")
    metrics, state = results[0]["resumed"][name]
    assert_same(metrics, expected_metrics, 1e-8)
    assert_same(state, expected_state, 1e-7)


@pytest.mark.slow
def test_two_groups_of_two(tmp_path):
    """Gradients are averaged over two groups that each hold all weights; batches of 4 leave one image each."""
    results = started(tmp_path, 4)[0]
    for name in OF_FOUR:
        assert_equal_to_one_process(results[name], (TOKENIZERS | GENERATORS)[name])


def test_split_weights_and_fused_optimizers():
    with pytest.raises(device.DeviceError, match=r"fused AdamW gathers whole weights .* set mesh\.fsdp to 1"):
        device.Runtime(types.SimpleNamespace(type="npu"), fused=True).adamw(split=True)
