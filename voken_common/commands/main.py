"""The one command, `voken`: its subcommands, and how each of them is started and ends.

A subcommand is a row of `SUBCOMMANDS` and a file of its name in this folder with `add_arguments(parser)` and
`run(options) -> int`; the file's docstring is the description that --help shows. Neither the file nor anything that
`add_arguments` does may import NumPy or a framework: those come inside `run`, so that help is there at once.

`python -m voken_jax.NAME` and `python -m voken_torch.NAME` are the same subcommands with the framework chosen.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import logging
import sys
from collections.abc import Callable
from typing import IO, Any, NamedTuple, cast

from voken_common.commands.frameworks import PREFERRED, Framework, choose
from voken_common.commands.options import HelpFormatter
from voken_common.commands.start import keep_freed_memory
from voken_common.errors import NonFiniteError, UnavailableError
from voken_common.untrusted.text import EscapedStream, log_to_terminal, say

UNUSABLE, DIVERGED, INTERRUPTED = 2, 3, 130
"""Exit statuses of every command: input that cannot be used, a run that diverged, Ctrl-C."""


_EXTRAS = {
    "jax": ("jax", "jaxlib", "flax", "optax", "orbax", "clu", "chex"),
    "torch": ("torch",),
    "npu": ("torch_npu",),
    "data": ("av", "fsspec", "skimage", "tensorflow_datasets"),
    "tokens": ("pyarrow",),
    "metrics": ("torchmetrics",),
}
"""Modules by the extra that installs them."""


class Subcommand(NamedTuple):
    """A row of the table.

    Attributes:
        name: the word after `voken`, and the name of the file in this folder.
        help: what it does, in one line.
        frameworks: those that it can run in; empty: it needs none, and has no --framework.
    """

    name: str
    help: str
    frameworks: tuple[Framework, ...] = PREFERRED


SUBCOMMANDS = (
    Subcommand("train", "train a tokenizer or a generator, or continue a run"),
    Subcommand("encode", "turn a data set into token shards"),
    Subcommand("reconstruct", "images or videos through a tokenizer and back, with PSNR"),
    Subcommand("evaluate", "measure a tokenizer, a generator or images, beside published figures"),
    Subcommand("statistics", "statistics of a reference set for FID, to be kept and shared"),
    Subcommand("sample", "draw images of classes with a generator"),
    Subcommand("inflate", "make a video tokenizer of an image tokenizer"),
    Subcommand("convert", "convert a checkpoint to another format", ("jax",)),
    Subcommand("export", "export a tokenizer to StableHLO, torch.export, ONNX or safetensors", ()),
    Subcommand("models", "list the published models, or all that is known of one", ()),
    Subcommand("push", "put a checkpoint on the hub, with a model card"),
    Subcommand("tokens", "export token shards to Parquet or to a flat array", ()),
    Subcommand("config", "explain settings, show a configuration and where its values come from", ()),
)


def main(arguments: list[str] | None = None) -> int:
    """Run `voken SUBCOMMAND ...`; exit status of the subcommand, 2 for input that cannot be used."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else UNUSABLE
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"voken {version('voken')}")
        return 0
    try:
        subcommand = find(words[0])
    except ValueError as error:
        say(f"error: {error}", error=True)
        return UNUSABLE
    return _start(subcommand, build_parser(subcommand), words[1:])


def run_module(name: str, framework: Framework, arguments: list[str] | None) -> int:
    """Run a subcommand as `python -m voken_<framework>.<name>`."""
    return _start(find(name), build_parser(find(name), framework), arguments)


def find(name: str) -> Subcommand:
    """The subcommand called `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    table = {subcommand.name: subcommand for subcommand in SUBCOMMANDS}
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        raise ValueError(
            f"voken has no subcommand {name!r}; "
            + (f"did you mean {near[0]}?" if near else f"it has {', '.join(table)}")
        )
    return table[name]


def build_parser(subcommand: Subcommand, framework: Framework | None = None) -> argparse.ArgumentParser:
    """The command line of a subcommand, without --framework where the framework is given."""
    module = _module(subcommand)
    parser = argparse.ArgumentParser(
        prog=f"voken {subcommand.name}" if framework is None else f"python -m voken_{framework}.{subcommand.name}",
        description=module.__doc__,
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(framework=framework)
    if framework is None and subcommand.frameworks:
        parser.add_argument(
            "--framework",
            choices=subcommand.frameworks,
            help="default: the first of these that is installed",
        )
    module.add_arguments(parser)
    return parser


def extra_of(module: str) -> str | None:
    """The extra of voken that a missing module comes with; None: it is no module of an extra."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if top in modules), None)


def guarded(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command; what the user can mend becomes one line and an exit status instead of a trace."""
    log_to_terminal()
    # JAX tells of every platform that it does not find.
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        # What is printed may hold names from files.
        with contextlib.redirect_stdout(cast(IO[str], EscapedStream(sys.stdout))):
            return run(options)
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on", file=sys.stderr)
        return INTERRUPTED
    except NonFiniteError as error:
        say(f"error: {error}", error=True)
        return DIVERGED
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        say(f"error: this needs {error.name}, which is not installed: pip install 'voken[{extra}]'", error=True)
        return UNUSABLE
    except (ValueError, OSError, UnavailableError) as error:
        say(f"error: {error}", error=True)
        return UNUSABLE


def _start(subcommand: Subcommand, parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    def run(options: argparse.Namespace) -> int:
        if subcommand.frameworks:
            options.framework = choose(options.framework, subcommand.frameworks)
            keep_freed_memory()
        status: int = _module(subcommand).run(options)
        return status

    return guarded(run, parser.parse_args(arguments))


def _module(subcommand: Subcommand) -> Any:
    return importlib.import_module(f"voken_common.commands.{subcommand.name}")


def _overview() -> str:
    width = max(len(subcommand.name) for subcommand in SUBCOMMANDS)
    rows = "\n".join(f"  {subcommand.name:{width}}  {subcommand.help}" for subcommand in SUBCOMMANDS)
    return (
        "usage: voken SUBCOMMAND [options]\n\n"
        "Visual tokenizers and generators, in JAX or PyTorch.\n\n"
        f"subcommands:\n{rows}\n\n"
        "voken SUBCOMMAND --help shows its options; voken --version the version. Where both JAX and PyTorch are\n"
        "installed JAX runs; --framework torch chooses the other."
    )
