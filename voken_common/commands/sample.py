"""Draw images of classes with a generator.

Writes PNG files per class and a grid. --npz samples.npz --num-per-class 50 --classes all writes the file that the ADM
evaluator reads: one uint8 array `arr_0` (N, H, W, 3), shuffled. The command may be killed at any time; the same command
goes on. Several processes share the work: start one on each device with --process-index I --process-count P, or in
PyTorch by torchrun. Without further options tokens are drawn as the checkpoint's configuration says. docs/sampling.md
says more.
"""

from __future__ import annotations

import argparse

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import add_checkpoint, add_device, add_processes, check_processes, step_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A generator, classes, how tokens are drawn, and what becomes of the images."""
    add_checkpoint(parser)
    parser.add_argument("--tokenizer", help="checkpoint of the tokenizer; default: the one the generator names")
    parser.add_argument(
        "--classes",
        required=True,
        help="numbers and ranges such as 207,360 or 0-9,207; names where the generator knows them; or all",
    )
    parser.add_argument("--num-per-class", type=int, default=8, metavar="N", help="images of each class")
    parser.add_argument("--output", metavar="DIR", help="write PNG files and a grid here")
    parser.add_argument("--npz", metavar="FILE", help="write one uint8 array arr_0 of all images here, shuffled")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples at once")
    parser.add_argument("--seed", type=int, default=0, help="decides all samples")
    parser.add_argument(
        "--preset",
        metavar="MODEL",
        help="settings of a published generator, such as ibq_generator_B; default: the checkpoint's own",
    )
    parser.add_argument("--scale", metavar="A[,B]", help="guidance scale, one value per sub-token; 1 means none")
    parser.add_argument("--temperature", metavar="A[,B]", help="0 takes the most likely code")
    parser.add_argument("--top-k", metavar="A[,B]", help="codes that stay; 0 means all")
    parser.add_argument("--top-p", metavar="A[,B]", help="probability mass that stays")
    parser.add_argument("--guidance", choices=("constant", "linear", "power-cosine"), help="course of the scale")
    parser.add_argument("--cache-dtype", choices=("float32", "bfloat16"), help="of keys and values; default: computed")
    add_device(parser)
    add_processes(parser)


def run(options: argparse.Namespace) -> int:
    """Draw, and say where the images are."""
    from voken_common.sampling.job import Job

    if (options.output is None) == (options.npz is None):
        raise ValueError("one of --output DIR (PNG files) and --npz FILE (one array) is needed")
    for name, least in (("num_per_class", 1), ("batch_size", 1), ("seed", 0)):
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
    backend = module_of(options, "sample")
    check_processes(options, backend.launched())
    options.step = step_of(options.step)
    job = Job(backend.open_generator(options), options)
    print(job.write_npz() if options.npz is not None else job.write_pictures())
    return 0
