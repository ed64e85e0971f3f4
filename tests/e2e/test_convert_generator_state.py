"""voken-convert with the training state of a generator: from JAX to PyTorch and back, bit by bit."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support.published_generator import FAMILIES, call, networks_once  # noqa: F401
from tests.support.tiny_generator import generator_config, write_shards
from voken_common.checkpoints.steps import Meta, Progress
from voken_common.data.tokens.pipeline import build_token_iterator
from voken_jax.checkpoints.orbax import Checkpoints
from voken_jax.generator.task import GeneratorTask
from voken_torch.checkpoints.torch import Checkpoints as TorchCheckpoints
from voken_torch.checkpoints.torch import read as read_torch
from voken_torch.generator.step import create_generator_state


@pytest.fixture(scope="module", params=[True, False], ids=["averages and clipping", "neither"])
def trained_state(request, tmp_path_factory):
    """(work directory, configuration, state, abstract state): every number another one, as the JAX trainer saves it."""
    folder = write_shards(tmp_path_factory.mktemp("run"), [24])
    optimizer = {"ema_decay": 0.9} if request.param else {"gradient_clip": None, "decay_all": False}
    config = generator_config(folder, FAMILIES["adaptive"][0], optimizer=optimizer)
    abstract = GeneratorTask(config, per_epoch=5).abstract
    rng = np.random.default_rng(0)

    def draw(leaf):
        integers = np.issubdtype(leaf.dtype, np.integer)
        values = rng.integers(0, 2**31, leaf.shape) if integers else 0.1 * rng.normal(size=leaf.shape)
        return jax.device_put((values if leaf.ndim else np.int32(6)).astype(leaf.dtype), leaf.sharding)

    state = dataclasses.replace(jax.tree.map(draw, abstract), failure=np.int32(0))
    checkpoints, iterator = Checkpoints(folder / "run", config.checkpoint), tokens_of(config)
    next(iterator)
    checkpoints.save(state, config, iterator, {"loss": 2.5}, Progress({"loss": (7.5, 3, "float32")}, 2))
    checkpoints.close()
    iterator.close()
    return folder / "run", config, state, abstract


def tokens_of(config):
    return build_token_iterator(config.data, batch_size_per_process=8, seed=0)


def test_a_training_state_moves_to_torch_and_back_bit_by_bit(trained_state, tmp_path, capsys):
    folder, config, state, abstract = trained_state
    assert call(folder, tmp_path / "torch", "--to", "torch") == 0
    assert "keeps training state: optimizer, random numbers" in capsys.readouterr().out
    assert call(tmp_path / "torch", tmp_path / "jax") == 0
    checkpoints, iterator = Checkpoints(tmp_path / "jax", config.checkpoint), tokens_of(config)
    assert checkpoints.meta(6) == Meta(config, 6, {"loss": 2.5}, Progress({"loss": (7.5, 3, "float32")}, 2))
    restored = checkpoints.restore(abstract, iterator)
    checkpoints.close()
    iterator.close()
    assert iterator.position == 8
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(restored)):
        assert ours.dtype == theirs.dtype, path
        np.testing.assert_array_equal(ours, theirs, err_msg=jax.tree_util.keystr(path))


def test_torch_continues_from_a_converted_training_state(trained_state, tmp_path):
    folder, config, state, _ = trained_state
    assert call(folder, tmp_path / "run", "--to", "torch") == 0
    torch_state, iterator = create_generator_state(config), tokens_of(config)
    TorchCheckpoints(tmp_path / "run", config.checkpoint).restore(torch_state, iterator)
    iterator.close()
    assert (torch_state.step, iterator.position) == (6, 8)
    assert torch_state.rng.tolist() == np.asarray(state.rng).tolist()
    adam = next(part for part in state.optimizer if hasattr(part, "nu"))
    moments = torch_state.to_dict()["optimizer"]
    assert int(moments["count"]) == 6
    for name in ("blocks.1.attention.wqkv", "blocks.0.ada_lin.1"):
        expected = np.asarray(adam.nu[f"{name}.kernel"]).T
        np.testing.assert_array_equal(moments["nu"][f"{name}.weight"], expected)
    assert bool(torch_state.generator_ema) == (config.optimizer.ema_decay is not None)


def test_other_formats_say_what_they_leave_of_a_training_state(trained_state, tmp_path, capsys):
    folder = trained_state[0]
    assert call(folder, tmp_path / "x.safetensors") == 0
    assert "drops training state and position in the data: the target holds weights only" in capsys.readouterr().out
    assert call(folder, tmp_path / "x.pt", "--weights", "raw") == 0
    assert read_torch(tmp_path / "x.pt").keys() & {"rest", "data", "generator_ema", "generator"} == {"generator"}
