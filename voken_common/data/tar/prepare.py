"""Check text-to-image tars once, before training: `python -m voken_common.data.tar.prepare DIR... --output DIR`.

Every DIR is a set, a folder or URL that holds `webdataset/*.tar` or `*.tar`. For each set NAME the output folder gets

  NAME.index             where each good image lies; what training reads (`data.train.kind: tar`)
  NAME.samples.json      {tar: number of good images}
  NAME.filter_keys.json  {tar: [names of bad members]}
  NAME.report.json       the reasons, and what is wrong with damaged tars
  NAME.parts/            one file per checked tar, by which an interrupted or repeated run goes on

A tar is checked again only if it or the options changed. Remove NAME.parts to save the space.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tqdm

from voken_common.atomic_write import replacing
from voken_common.config.schema.data import RETRY_SECONDS
from voken_common.data.errors import DataError
from voken_common.data.storage import files as storage
from voken_common.data.storage.retry import Patience, reason
from voken_common.data.tar.check import IMAGE_KEYS, CheckOptions, TarReport, check_tar
from voken_common.data.tar.index import INDEX_SUFFIX, IndexColumns, IndexedTar
from voken_common.data.workers import initialize_worker
from voken_common.untrusted.files import LARGEST_LIST, read_bytes
from voken_common.untrusted.json_text import loads
from voken_common.untrusted.text import say

_PART_VERSION = 3
_SHOWN = 5
_NAMES = f"<sample>.{', .'.join(IMAGE_KEYS)}"


@dataclasses.dataclass(frozen=True)
class TarFolder:
    """A set: its name, where its tars are, and which there are."""

    name: str
    location: str
    tars: dict[str, storage.FileInfo]


def find_set(directory: str) -> TarFolder:
    """The tars of a set, in its folder `webdataset` or in itself.

    Raises:
      DataError: there are none.
    """
    top = storage.normalized(directory)
    inner = storage.join(top, "webdataset")
    for location in (inner, top):
        tars = storage.list_files(location, ".tar")
        if tars:
            name = os.path.basename(os.path.dirname(top) if os.path.basename(top) == "webdataset" else top)
            return TarFolder(name, location, tars)
    raise DataError(f"no tars in {top}: expected {inner}/*.tar or {top}/*.tar")


def prepare_set(
    folder: TarFolder,
    output: Path,
    options: CheckOptions,
    *,
    workers: int,
    damaged_tars: str = "keep",
    retry_seconds: float = RETRY_SECONDS,
) -> dict[str, Any]:
    """Check a set and write its files.

    Args:
      folder: the set.
      output: folder for the files.
      options: what a good image is.
      workers: processes; 0 checks in this one.
      damaged_tars: what to do with a tar that is cut or damaged: `keep` the good images before the damage, or `refuse`
        the whole tar.
      retry_seconds: how long reading a tar is tried again, from its first byte, where it fails for a reason that may
        pass.

    Returns:
      the contents of the report file.

    Raises:
      DataError: a tar cannot be read, or no image is good.
      OSError: the output cannot be written.
    """
    paths = {name: storage.join(folder.location, name) for name in folder.tars}
    parts = {name: output / f"{folder.name}.parts" / f"{name}.json" for name in folder.tars}
    todo = [name for name in folder.tars if not _is_finished(parts[name], paths[name], folder.tars[name], options)]
    total = sum(info.size for info in folder.tars.values())
    left = sum(folder.tars[name].size for name in todo)
    good = bad = 0
    with tqdm.tqdm(total=total, initial=total - left, unit="B", unit_scale=True, desc=folder.name) as bar:
        patience = Patience(retry_seconds, "--retry-seconds")
        for report in _check_all([paths[name] for name in todo], options, workers, patience):
            _write_json(parts[report.name], _part(report, options), compact=True)
            good, bad = good + len(report.good), bad + len(report.bad)
            bar.set_postfix(good=good, bad=bad, refresh=False)
            bar.update(folder.tars[report.name].size)
    return _write_outputs(folder, output, parts, options, refuse_damaged=damaged_tars == "refuse")


def _check_all(paths: Sequence[str], options: CheckOptions, workers: int, patience: Patience) -> Iterator[TarReport]:
    if workers == 0 or not paths:
        for path in paths:
            yield _check_one(path, options, patience)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(paths)),
        # Not fork: the process may hold threads of other libraries.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=initialize_worker,
        initargs=(0, workers),
    )
    try:
        # No list of the futures: each would keep its report, and all of them together may be larger than memory.
        submitted = (pool.submit(_check_one, path, options, patience) for path in paths)
        for tried, future in enumerate(concurrent.futures.as_completed(submitted), start=1):
            try:
                yield future.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise DataError(
                    "a process that checks tars was killed: by want of memory (use fewer --workers), or by an image "
                    f"that crashes the decoder (then --workers 0 ends at its tar), after {tried - 1} of {len(paths)} "
                    "tars; the same command goes on from there"
                ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_one(path: str, options: CheckOptions, patience: Patience) -> TarReport:
    try:
        return patience.read(lambda: check_tar(path, options), lambda: path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}; the same command goes on from here") from error


def _part(report: TarReport, options: CheckOptions) -> dict[str, Any]:
    return {"version": _PART_VERSION, "options": dataclasses.asdict(options), "report": report.to_json()}


def _is_finished(part: Path, path: str, info: storage.FileInfo, options: CheckOptions) -> bool:
    """True if an earlier run has checked this tar, unchanged since, with these options."""
    try:
        values = loads(read_bytes(part, LARGEST_LIST))
        if values["version"] != _PART_VERSION or values["options"] != dataclasses.asdict(options):
            return False
        return TarReport.from_json(values["report"]).fingerprint.change(path, info) is None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Whatever is wrong with it, checking the tar again mends it.
        return False


def _write_outputs(
    folder: TarFolder, output: Path, parts: dict[str, Path], options: CheckOptions, *, refuse_damaged: bool
) -> dict[str, Any]:
    damaged: dict[str, str] = {}
    bad: dict[str, dict[str, str]] = {}
    samples: dict[str, int] = {}
    passed_over: dict[str, int] = {}
    images, example = 0, None

    def kept() -> Iterator[IndexedTar]:
        # One part at a time: all of them together may be larger than memory.
        nonlocal images, example
        for name, part in parts.items():
            report = TarReport.from_json(loads(read_bytes(part, LARGEST_LIST))["report"])
            images += len(report.good) + len(report.bad)
            if report.bad:
                bad[name] = report.bad
            if report.passed_over[0]:
                passed_over[name] = report.passed_over[0]
                example = example or f"{name}:{report.passed_over[1]}"
            if report.damage:
                damaged[storage.join(folder.location, name)] = report.damage
            if not (report.damage and refuse_damaged):
                samples[name] = len(report.good)
                yield report.indexed

    columns = IndexColumns()
    for tar in kept():
        columns.add(tar)
    summary = {
        "set": folder.name,
        "location": folder.location,
        "options": dataclasses.asdict(options),
        "tars": len(parts),
        "images": images,
        "good": sum(samples.values()),
        "damaged_tars_are": "left out" if refuse_damaged else "kept up to the damage",
        "damaged_tars": damaged,
        "passed_over": passed_over,
        "passed_over_example": example,
        "bad": bad,
    }
    _write_json(output / f"{folder.name}.report.json", summary)
    if not summary["good"]:
        raise DataError(
            f"no good image in the {len(parts)} tars of {folder.location}; looked for members named {_NAMES}. "
            f"{_reasons(summary)}"
        )
    _write_json(output / f"{folder.name}.samples.json", samples)
    _write_json(output / f"{folder.name}.filter_keys.json", {name: sorted(bad.get(name, ())) for name in samples})
    columns.write(output / f"{folder.name}{INDEX_SUFFIX}", folder.location)
    return summary


def _reasons(summary: dict[str, Any]) -> str:
    reasons = []
    if summary["passed_over"]:
        reasons.append(_passed_over(summary))
    reasons += [f"{path}: {damage}" for path, damage in summary["damaged_tars"].items()]
    reasons += [f"{tar}: {name}: {why}" for tar, bad in summary["bad"].items() for name, why in bad.items()]
    return "First problems: " + "; ".join(reasons[:_SHOWN]) if reasons else "There are no images at all"


def _passed_over(summary: dict[str, Any]) -> str:
    return (
        f"members that look like images but are not named {_NAMES}: {sum(summary['passed_over'].values())}, "
        f"for example {summary['passed_over_example']}"
    )


def _write_json(path: Path, values: Any, *, compact: bool = False) -> None:
    with replacing(path) as file:
        file.write(json.dumps(values, indent=None if compact else 2).encode() + b"\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m voken_common.data.tar.prepare",
        description="Check sets of text-to-image tars and write their indices, samples and filter-keys files.",
    )
    parser.add_argument("sets", nargs="+", metavar="DIR", help="a set: folder or URL with webdataset/*.tar or *.tar")
    parser.add_argument("--output", required=True, type=Path, help="folder for the files, one group per set")
    parser.add_argument(
        "--min-side", type=int, help="images with a side under this many pixels are bad; default: none is too small"
    )
    parser.add_argument("--max-aspect", type=float, help="images with sides of a larger ratio are bad; default: 256")
    parser.add_argument(
        "--retry-seconds",
        type=float,
        default=RETRY_SECONDS,
        metavar="SECONDS",
        help="how long a tar is tried again while the network or the store does not answer; default: %(default)g",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; 0: check in this one")
    parser.add_argument(
        "--damaged-tars",
        choices=("keep", "refuse"),
        default="keep",
        help="a cut or damaged tar: keep the good images before the damage, or leave it out",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every set got its files."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.workers < 0 or (args.min_side is not None and args.min_side < 1):
        parser.error("--workers must be at least 0 and --min-side at least 1")
    if args.max_aspect is not None and not args.max_aspect >= 1:
        parser.error(f"--max-aspect is the longer side by the shorter one, at least 1; found {args.max_aspect:g}")
    if not args.retry_seconds >= 0:
        parser.error(f"--retry-seconds must be 0 or more, found {args.retry_seconds:g}")
    options = CheckOptions(args.min_side, args.max_aspect)
    try:
        return _prepare_all(args, options)
    except (DataError, OSError) as error:
        say(f"error: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _prepare_all(args: argparse.Namespace, options: CheckOptions) -> int:
    """Every set that can be prepared; a set that cannot is told, and does not keep the others from theirs."""
    problems: list[str] = []
    folders: list[TarFolder] = []
    for directory in args.sets:
        try:
            folders.append(find_set(directory))
        except (DataError, OSError) as error:
            problems.append(str(error))
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise DataError(f"sets must have different names, found {', '.join(names)}: give them different --output")
    for folder in folders:
        try:
            summary = prepare_set(
                folder,
                args.output,
                options,
                workers=args.workers,
                damaged_tars=args.damaged_tars,
                retry_seconds=args.retry_seconds,
            )
        except DataError as error:
            problems.append(str(error))
            continue
        _print_summary(summary, args.output / f"{folder.name}{INDEX_SUFFIX}")
    for problem in problems:
        say(f"error: {problem}", error=True)
    if problems and len(args.sets) > 1:
        done = len(args.sets) - len(problems)
        print(f"{done} of {len(args.sets)} sets were prepared, {len(problems)} were not", file=sys.stderr)
    return 1 if problems else 0


def _print_summary(summary: dict[str, Any], index: Path) -> None:
    bad = sum(len(names) for names in summary["bad"].values())
    lines = [f"{summary['set']}: {summary['tars']} tars, {summary['good']} good images, {bad} bad: {index}"]
    lines.append(f"  train on it with {{index: {index}, location: {summary['location']}}}")
    if summary["passed_over"]:
        lines.append(f"  passed over: {_passed_over(summary)}")
    for path, damage in summary["damaged_tars"].items():
        lines.append(f"  damaged tar {summary['damaged_tars_are']}: {path}: {damage}")
    say("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
