"""A codebook that collapses is told by training alone, and a healthy one is not; in both frameworks."""

import contextlib
import importlib

import numpy as np
import pytest
import torch

from tests.e2e.conftest import record_batches
from tests.support.tiny import quantized_by, write
from voken_common.config.loading import load_config
from voken_common.training.collapse import CodeUse, CollapseWatch

STEPS = 4
SETTINGS = (
    "data.validation=null",
    f"training={{batch_size: 16, steps: {STEPS}, log_every: 2}}",
    "checkpoint={every: 100, keep_best: 0}",
    "health.collapse_steps=4",
    # So small that the weights stay what they are.
    "optimizer={learning_rate: 1.0e-15, ema_decay: 0.9}",
)
LATENTS = ("quant_conv.kernel", "quant_conv.weight", "quant_conv.bias")
SLOW = pytest.mark.slow
CASES = pytest.mark.parametrize(
    ("framework", "overrides"),
    [
        pytest.param("jax", ("mesh.fsdp=2",), marks=SLOW),
        pytest.param("jax", ("optimizer.gradient_accumulation=2", "statistics_scope=per_device"), marks=SLOW),
        ("torch", ()),
        ("torch", ("optimizer.gradient_accumulation=2",)),
    ],
)


@contextlib.contextmanager
def the_same_code_everywhere(framework):
    """Encoders are born with a last layer of zeros: the code of the smallest norm is the nearest of every token."""
    task = importlib.import_module(f"voken_{framework}.tokenizer.task")
    create = task.create_state

    def collapsed(*arguments):
        state = create(*arguments)
        zeros = {name: 0 * weight for name, weight in state.generator.items() if name in LATENTS}
        assert len(zeros) == 2
        if framework == "jax":
            return state.replace(generator=state.generator | zeros)
        for name, value in zeros.items():
            state.generator[name].data.copy_(value)
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "create_state", collapsed)
        yield


def trained(framework, folder, overrides):
    """(what the watch was given, every batch of the run)."""
    folder.mkdir()
    config, uses = load_config(write(folder, quantized_by("vq")), (*SETTINGS, *overrides)), []
    watched = CollapseWatch.trained
    with pytest.MonkeyPatch.context() as patch:
        batches = record_batches(patch)
        patch.setattr(CollapseWatch, "trained", lambda w, step, use: uses.append(use) or watched(w, step, use))
        importlib.import_module(f"voken_{framework}.training.run").train(config, folder / "run")
    return uses, batches


@CASES
def test_what_training_uses_is_what_its_images_become(framework, overrides, tmp_path, caplog):
    uses, batches = trained(framework, tmp_path / "run", overrides)
    assert len(batches) == STEPS
    tokenizer = importlib.import_module(f"voken_{framework}.tokenizer.api").Tokenizer.load(tmp_path / "run" / "run")
    if framework == "torch":
        batches = [torch.from_numpy(images).movedim(-1, 1) for images in batches]
    ids = [np.asarray(tokenizer.encode(images)) for images in batches]
    pairs = [np.concatenate(ids[i : i + 2]) for i in (0, 2)]
    assert uses == [CodeUse(len(np.unique(pair)), 24, pair.size) for pair in pairs]
    assert min(use.used for use in uses) > 3
    assert "collapsed" not in caplog.text


@CASES
def test_collapse_between_validations_is_told(framework, overrides, tmp_path, caplog):
    with the_same_code_everywhere(framework):
        uses, _ = trained(framework, tmp_path / "run", overrides)
    assert [use.used for use in uses] == [1, 1]
    told = "the codebook has collapsed: for 4 steps training has used too few of its codes, lately 4.17% of 24 codes"
    assert caplog.text.count(told) == 1
