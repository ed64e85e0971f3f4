"""Export token shards to the formats of other programs.

--to parquet writes one file that Hugging Face datasets and pandas read. --to flat writes one array of uint16 or uint32
numbers for language-model code, class first, with a JSON beside it that says how numbers are laid out. docs/tokens.md
has a training loop that reads it.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A folder of shards, a format and a file."""
    parser.add_argument("shards", metavar="DIR", help="a finished folder of token shards, as the encode command writes")
    parser.add_argument("--to", choices=("parquet", "flat"), required=True, help="format of the file")
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")


def run(options: argparse.Namespace) -> int:
    """Write the file, and say what is in it."""
    from voken_common.data.tokens.export import write_flat, write_parquet
    from voken_common.data.tokens.shards import TokenShardSource

    source = TokenShardSource(options.shards)
    write = write_parquet if options.to == "parquet" else write_flat
    print(f"{options.output}: {write(source, options.output)} samples of {source.describe()}")
    return 0
