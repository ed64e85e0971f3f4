"""Print the published models: what they are, what their authors report, and the names under which they load.

`Tokenizer.load`, `Generator.load` and every command's --checkpoint take the names in the first and in the last column.
docs/models.md says which to take for what.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, for all that is known of it."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="all that is known of one model")


def run(options: argparse.Namespace) -> int:
    """Print the table, or one model."""
    from voken_common.errors import UserError
    from voken_common.published import models, table

    if options.name is None:
        for line in table.text().splitlines():
            print(line)
        return 0
    try:
        model = models.find(options.name)
    except KeyError as error:
        raise UserError(error.args[0]) from error
    known = {
        "name": model.name,
        "project": f"{model.project}, as {model.published_as or model.name}",
        "kind": model.family,
        "on the hub": f"{model.repository}, file {model.file} ({model.size})",
        "codes": " x ".join(f"{codes:,}" for codes in model.codes),
        "parameters": f"{model.parameters:.1f} M",
        "configuration": model.config,
    }
    if model.tokenizer is not None:
        known["tokenizer"] = model.tokenizer
    known |= {f"{figure.metric} on {figure.on}": f"{figure.value:g}" for figure in model.figures}
    width = max(map(len, known))
    for key, value in known.items():
        print(f"{key:<{width}}  {value}")
    return 0
