"""Put a checkpoint on the hub: weights as .safetensors, configuration, and a card with usage, figures and a picture.

It then loads by its name, in both frameworks: Tokenizer.load("OWNER/NAME"). Needs a token that may write there
(`hf auth login`, or HF_TOKEN). --save writes the same files into a folder instead.
"""

from __future__ import annotations

import argparse

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import add_checkpoint, step_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A checkpoint, and where it goes."""
    parser.add_argument("repository", nargs="?", metavar="OWNER/NAME", help="of the hub; created where it is not there")
    add_checkpoint(parser)
    parser.add_argument("--tokenizer", help="of a generator: checkpoint of the tokenizer; default: its own")
    parser.add_argument("--save", metavar="DIR", help="write the files into a folder instead")
    parser.add_argument("--private", action="store_true", help="of a repository that is created")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--no-picture", action="store_false", dest="picture", help="do not run the model for a picture")


def run(options: argparse.Namespace) -> int:
    """Load, and push or save."""
    from voken_common.errors import UserError

    if (options.repository is None) == (options.save is None):
        raise UserError("name either a repository (OWNER/NAME) or a folder (--save DIR)")
    options.step = step_of(options.step)
    model = module_of(options, "push").open_model(options)
    if options.save is not None:
        print(f"wrote {model.save(options.save, picture=options.picture).parent}")
        return 0
    address = model.push_to_hub(
        options.repository, private=options.private, message=options.message, picture=options.picture
    )
    print(f"pushed {options.repository}: {address}")
    return 0
