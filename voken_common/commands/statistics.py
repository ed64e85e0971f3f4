"""Statistics of a reference set, to be kept and shared.

Writes an .npz with `mu` and `sigma` of FID's features, which pytorch-fid reads as well, and `mu_s` and `sigma_s` of
sFID's. `voken evaluate` takes it as --reference, and with --inception-resize half_pixel as --originals of tokenizers.
"""

from __future__ import annotations

import argparse

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import add_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A set of images and a file."""
    parser.add_argument("images", metavar="PATH", help="an .npz with arr_0, or a folder of pictures of one size")
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument(
        "--inception-resize",
        choices=("half_pixel", "tensorflow1"),
        default="tensorflow1",
        help="tensorflow1 as the ADM evaluator and torch-fidelity, half_pixel as pytorch-fid",
    )
    parser.add_argument(
        "--inception", default="auto", metavar="FILE", help="weights of FID's Inception; auto: cache, else download"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per call of the network")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, and write the file."""
    from voken_common.evaluation.engine import MetricWeights
    from voken_common.evaluation.generated.measure import load_reference, save_statistics

    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}: expected at least 1")
    if not options.output.endswith(".npz"):
        raise ValueError(f"--output {options.output}: expected a name that ends in .npz")
    engine = module_of(options, "evaluate").open_engine(options, MetricWeights(options.inception))
    reference = load_reference(
        options.images,
        engine,
        resize=options.inception_resize,
        batch_size=options.batch_size,
        with_features=False,
        report=lambda text: print(text),
    )
    save_statistics(options.output, reference)
    count = reference.statistics.count
    print(f"{options.output}: statistics of {reference.describe}{f', {count:,} images' if count else ''}")
    return 0
