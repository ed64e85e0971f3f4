"""Options of the commands that are given a checkpoint to read: all but training."""

from __future__ import annotations

import argparse


def add_no_verify(parser: argparse.ArgumentParser) -> None:
    """`--no-verify`, which leaves False in `options.checksums`."""
    parser.add_argument(
        "--no-verify",
        action="store_false",
        dest="checksums",
        help="do not compare the checkpoint with its checksums: to save reading very large files once more when they "
        "were verified before, or to get what is left out of a damaged one",
    )
