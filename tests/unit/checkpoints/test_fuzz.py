"""Mutated configurations and checkpoints: a clear error or a right answer, soon; images, tars: test_data_fuzz.py."""

import contextlib
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from tests.support.tiny import TINY, quantized_by
from tests.unit.checkpoints.test_checkpoint import open_iterator, save_all, state_of, tiny_config
from voken_common.checkpoints.torch_pickle import load
from voken_common.config.loading import load_any_config
from voken_common.errors import CheckpointError
from voken_jax.checkpoints.orbax import Checkpoints, steps_in
from voken_torch.checkpoints.torch import Checkpoints as TorchCheckpoints
from voken_torch.checkpoints.torch import find_step, read

QUICK, SLOW = 40, 2000
SECONDS = 20.0
"""No single input may take longer, on a machine that is busy with other things."""


def mutated(draw, content, places=(1, 1, 3, 20)):
    """Content with bytes changed, dropped, repeated, or cut off, in one or more places."""
    content = bytearray(content)
    for _ in range(draw.choice(places)):
        if not content:
            break
        begin = draw.randrange(len(content))
        kind = draw.randrange(5)
        if kind == 0:
            content[begin] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[begin] = draw.randrange(256)
        elif kind == 2:
            del content[begin : begin + draw.randrange(1, 50)]
        elif kind == 3:
            content[begin:begin] = content[begin : begin + draw.randrange(1, 50)]
        else:
            del content[begin:]
    return bytes(content)


def check_configurations(count, folder):
    draw, errors, file = random.Random(1), [], folder / "x.yaml"
    texts = [yaml.safe_dump(content).encode() for content in (TINY, quantized_by("ibq"), quantized_by("vq"))]
    for number in range(count):
        file.write_bytes(mutated(draw, texts[number % len(texts)], (1,)))
        begin = time.monotonic()
        try:
            config = load_any_config(file)
            assert config.training.batch_size > 0
        # A kind of ConfigError, or what the wrong bytes are: none of them but with a message for the user.
        except ValueError as error:
            errors.append(str(error))
        assert time.monotonic() - begin < SECONDS
    assert all(len(text) > 10 for text in errors)
    errors = len(errors)
    assert count * 0.3 < errors


def torch_run(folder, config):
    """A work directory with steps 1 and 2 as PyTorch writes them."""
    for number in (1, 2):
        tensors = {"conv.weight": torch.arange(600.0) + number, "conv.bias": torch.full((3,), float(number))}
        state = SimpleNamespace(step=number)
        state.to_dict = lambda n=number, w=tensors: {
            "step": torch.tensor(n),
            "generator": w,
            "generator_ema": w,
            "rng": w,
        }
        iterator = SimpleNamespace(get_state=lambda n=number: {"position": 8 * n})
        TorchCheckpoints(folder, config.checkpoint).save(state, config, iterator, {})


def check_torch_files(count, folder, caplog):
    config = tiny_config(folder)
    torch_run(folder / "run", config)
    newest = folder / "run" / "checkpoints" / "2.pt"
    whole, draw, errors = newest.read_bytes(), random.Random(2), 0
    for _ in range(count):
        newest.write_bytes(mutated(draw, whole))
        begin = time.monotonic()
        chosen = find_step(folder / "run")
        number = int(chosen.stem)
        content = read(chosen)
        assert content["step"] == number
        assert torch.equal(content["generator"]["conv.weight"], torch.arange(600.0) + number), "never another number"
        assert content["data"]["position"] == 8 * number
        with contextlib.suppress(CheckpointError):
            load(newest)
        errors += number == 1
        assert time.monotonic() - begin < SECONDS
    assert errors > count * 0.8
    assert "step 2 is damaged: " in caplog.text


def check_orbax_steps(count, folder, draw_seed=3):
    config = tiny_config(folder)
    save_all(folder, config, {3: 1.0, 4: 2.0})
    source, draw, passed_over = folder / "checkpoints" / "4", random.Random(draw_seed), 0
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    one = config.checkpoint.model_copy(update={"keep_last": 1, "keep_best": 0})
    for number in range(count):
        file = source / draw.choice(files)
        whole = file.read_bytes()
        file.write_bytes(mutated(draw, whole))
        begin, checkpoints = time.monotonic(), Checkpoints(folder, one)
        droppable = checkpoints._steps._droppable(steps_in(source.parent))
        latest = checkpoints.recover()
        assert latest in (3, 4)
        assert droppable == ([] if latest == 3 else [3]), "3 may go if 4 is good, and only then"
        assert sorted(steps_in(source.parent)) == ([3] if latest == 3 else [3, 4])
        passed_over += latest == 3
        # What counts as good is good: reading it is slow, so only some are.
        if latest == 4 or number % 20 == 0:
            check_restores(checkpoints, config, latest)
        checkpoints.close()
        assert time.monotonic() - begin < SECONDS
        if latest == 3:
            (folder / "damaged_checkpoints" / "4").rename(source)
        file.write_bytes(whole)
    assert passed_over > count * 0.5


def check_restores(checkpoints, config, step):
    import jax

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), state_of(0))
    iterator = open_iterator(config)
    try:
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(abstract, iterator), state_of(step))
    finally:
        iterator.close()


def test_mutated_configurations(tmp_path):
    check_configurations(QUICK, tmp_path)


def test_mutated_torch_files(tmp_path, caplog):
    check_torch_files(QUICK, tmp_path, caplog)


def test_mutated_orbax_steps(tmp_path):
    check_orbax_steps(12, tmp_path)


@pytest.mark.slow
def test_many_mutated_configurations(tmp_path):
    check_configurations(SLOW, tmp_path)


@pytest.mark.slow
def test_many_mutated_torch_files(tmp_path, caplog):
    check_torch_files(SLOW, tmp_path, caplog)


@pytest.mark.slow
def test_many_mutated_orbax_steps(tmp_path):
    check_orbax_steps(SLOW, tmp_path, 4)
