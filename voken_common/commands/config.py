"""Explain settings and show configurations: `voken config list`, `explain KEY`, `show FILE`.

`list` prints every key with its type and default. `explain temperature` (or `quantizer.temperature`) says what a key
means. `show FILE` prints the whole configuration as a run would use it, every line with its origin: the file that sets
it, a --set of this command, or the default. docs/configuration.md has the same as tables, with a worked example.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An action and what it is about."""
    parser.add_argument("action", choices=("list", "explain", "show"))
    parser.add_argument("subject", nargs="?", metavar="KEY|FILE", help="a key for explain, a configuration for show")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="of show: override a setting"
    )
    parser.add_argument("--kind", choices=("tokenizer", "generator"), help="of list: only keys of this kind of run")


def run(options: argparse.Namespace) -> int:
    """Print what was asked for."""
    from voken_common.config import origins, reference

    if options.action == "list":
        for kind in [options.kind] if options.kind else reference.ROOTS:
            print(f"# {kind}")
            for section in reference.sections(kind):
                for setting in section.settings:
                    default = "(must be set)" if setting.default is None else setting.default
                    variant = f"  [{setting.variant}]" if setting.variant else ""
                    print(f"{setting.key}: {default}  # {setting.type}{variant}")
        return 0
    if options.subject is None:
        wanted = "KEY, such as quantizer.temperature" if options.action == "explain" else "FILE"
        raise ValueError(f"voken config {options.action} needs a {wanted}")
    if options.action == "explain":
        found = reference.find_settings(options.subject)
        lines = [line for pair in found for line in (*reference.describe(*pair).splitlines(), "")]
    else:
        lines = origins.annotated_yaml(options.subject, options.overrides).splitlines()
    # One by one: a line break inside what is printed is shown as such, since names from files may hold one.
    for line in lines:
        print(line)
    return 0
