"""Training on two devices, one process each: `torchrun --nproc-per-node 2 -m tests.npu.inside.two_processes DIR`.

First some steps whose results go to DIR/<rank>.pt, then the training command with DIR/tiny.yaml.
"""

import os
import sys
from pathlib import Path

import torch

from tests.unit.tokenizer.test_torch_step import config_of, flat, images_of
from voken_common.config.schedules import build_schedule
from voken_torch.device import runtime as device
from voken_torch.device.runtime import Runtime
from voken_torch.parallel import sharding
from voken_torch.tokenizer.state import create_state
from voken_torch.tokenizer.step import TokenizerStep
from voken_torch.train import main as command

STEPS = 3
CONFIGS = {
    "global": config_of(
        "ibq", "patchgan", dtype="float32", optimizer={"learning_rate": 1e-5, "gradient_accumulation": 2}
    ),
    "per_device": config_of("lfq", "patchgan", dtype="float32", statistics_scope="per_device"),
}


def train(config, runtime, part=0, parts=1):
    """Metrics of every step and the final state, for one part of every batch."""
    state = create_state(config, runtime)
    step = TokenizerStep(config, state, build_schedule(config, 10, config.training.steps), runtime)
    metrics = [flat(step(state, images_of(number).float().chunk(parts)[part])) for number in range(STEPS)]
    return [_on_cpu(values) for values in metrics], _on_cpu(flat(state.to_dict()))


def _on_cpu(values):
    return {name: value.detach().cpu() for name, value in values.items()}


def run_steps(folder):
    # What one process makes of the whole batch, and of this one's part alone; before the processes join, but with the
    # backend loaded, as autograd counts the devices when it is first used.
    rank = int(os.environ["RANK"])
    device.resolve("npu", rank)
    results = {"whole": train(CONFIGS["global"], Runtime()), "alone": train(CONFIGS["per_device"], Runtime(), rank, 2)}
    plain = device.start("npu")
    for name, config in CONFIGS.items():
        results[name] = train(config, plain, rank, sharding.process_count())
    fused = Runtime(plain.device, fused=True)
    results["fused"] = train(CONFIGS["global"], fused, rank, sharding.process_count())
    results["where"] = [torch.distributed.get_backend(), str(plain.device)]
    results["others"] = sharding.gather_objects(rank)
    torch.save(results, folder / f"{rank}.pt")


def run_command(folder):
    arguments = ["--config", folder / "tiny.yaml", "--workdir", folder / "run", "--device", "npu", "--fused"]
    settings = ["training.steps=2", "precision.compute_dtype=bfloat16"]
    return command([*map(str, arguments), *(word for setting in settings for word in ("--set", setting))])


if __name__ == "__main__":
    run_steps(Path(sys.argv[1]))
    sys.exit(run_command(Path(sys.argv[1])))
