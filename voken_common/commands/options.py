"""Options that several commands share, and the help that shows their defaults."""

from __future__ import annotations

import argparse
from typing import Any

DEVICES = ("auto", "npu", "cuda", "tpu", "cpu")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the paragraphs of the description and ends every option with its default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        shown = action.option_strings and not (
            action.default is None
            or action.default is False
            or action.default is True
            or action.default in ([], argparse.SUPPRESS)
        )
        if not shown or "default" in text:
            return text
        return f"{text}{'; ' if text else ''}default %(default)s"


def add_checkpoint(parser: argparse.ArgumentParser, *, required: bool = True, of: str = "") -> None:
    """`--checkpoint`, `--step`, `--weights`, `--precision` and `--no-verify`.

    Args:
        parser: gets them.
        required: whether the command cannot do without a checkpoint.
        of: of which model, for the help, such as "of the tokenizer: ".
    """
    parser.add_argument(
        "--checkpoint",
        required=required,
        help=f"{of}a published model (`voken models`), OWNER/NAME[@REVISION][:FILE] on the hub, a Lightning .ckpt, a "
        ".pt or .safetensors file, a work directory, or one step of it",
    )
    add_checkpoint_options(parser)


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """`--step`, `--weights`, `--precision`, `--no-verify`, for commands that name the checkpoint in their own way."""
    parser.add_argument("--step", default="latest", help="of a work directory: latest, best or a number")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averages, if the checkpoint has them")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float64"),
        default="float32",
        help="to compute in, whatever the model was trained in; bfloat16 changes some ids",
    )
    add_no_verify(parser)


def add_no_verify(parser: argparse.ArgumentParser) -> None:
    """`--no-verify`, which leaves False in `options.checksums`."""
    parser.add_argument(
        "--no-verify",
        action="store_false",
        dest="checksums",
        help="do not compare the checkpoint with its checksums: to save reading very large files once more when they "
        "were verified before, or to get what is left out of a damaged one",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, of which each framework refuses the kinds that it does not know."""
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="default auto: in PyTorch an NPU, else CUDA, else the CPU; in JAX the first of its platforms",
    )


def add_cutting(parser: argparse.ArgumentParser) -> None:
    """`--window`, `--fade`, `--tile` and `--blend`, how videos are cut."""
    group = parser.add_argument_group("videos")
    group.add_argument("--window", type=int, default=17, metavar="T", help="frames per window")
    group.add_argument("--fade", type=int, default=0, metavar="T", help="frames by which windows overlap")
    group.add_argument("--tile", type=int, default=256, metavar="PIXELS", help="largest side seen whole; 0: any")
    group.add_argument("--blend", type=int, default=32, metavar="PIXELS", help="by which tiles overlap")


def cutting_of(options: argparse.Namespace) -> Any:
    """The options of `add_cutting`, as a `voken_common.data.video.windows.Cutting`."""
    from voken_common.data.video.windows import Cutting

    return Cutting(options.window, options.fade, options.tile, options.blend)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """`--process-index` and `--process-count` of a command whose processes share work without talking."""
    parser.add_argument(
        "--process-index", type=int, metavar="I", help="which of several processes; default: as torchrun says, else 0"
    )
    parser.add_argument(
        "--process-count", type=int, metavar="P", help="that share the work; default: as torchrun says, else 1"
    )


def add_overrides(parser: argparse.ArgumentParser, metavar: str = "KEY=VALUE", text: str = "change a setting") -> None:
    """`--set`, any number of times, in `options.overrides`."""
    parser.add_argument("--set", action="append", default=[], metavar=metavar, dest="overrides", help=text)


def step_of(text: str) -> Any:
    """The value of `--step`.

    Raises:
        ValueError: neither a number nor one of the two words.
    """
    if not text.isdecimal() and text not in ("latest", "best"):
        raise ValueError(f"--step {text}: expected latest, best or a number")
    return int(text) if text.isdecimal() else text


def check_processes(options: argparse.Namespace, launched: tuple[int, int]) -> None:
    """Fill in `--process-index` and `--process-count` where they were not given.

    Args:
        options: of `add_processes`.
        launched: (index, count) as what started this process says them.

    Raises:
        ValueError: numbers that do not go together.
    """
    index, count = launched
    options.process_index = index if options.process_index is None else options.process_index
    options.process_count = count if options.process_count is None else options.process_count
    if options.process_count < 1:
        raise ValueError(f"--process-count {options.process_count}: expected at least 1")
    if not 0 <= options.process_index < options.process_count:
        raise ValueError(
            f"--process-index {options.process_index} of --process-count {options.process_count}: expected 0 to "
            f"{options.process_count - 1}"
        )
