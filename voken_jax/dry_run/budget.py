"""Costs of a step on any number of devices, read off the program itself: arithmetic, memory, communication.

Everything here is computed, nothing is measured: the program is compiled for as many simulated devices as asked for, so
a budget says what the program has to do, and not how fast a machine does it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "bf16": 16,
    "f16": 16,
    "s16": 16,
    "u16": 16,
    "s64": 64,
    "u64": 64,
}
_BITS |= {"f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([0-9,]*)\}")
_GROUPS_COUNTED = re.compile(r"replica_groups=\[([0-9,]+)\]<=")
_GROUPS_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}")
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|true_computation|false_computation|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"([0-9]+)"\}')


class Traffic(NamedTuple):
    """One kind of collective in one step.

    Attributes:
        operations: how many are run.
        payload: bytes of their results, on each device.
        sent: bytes that each device sends if rings are used.
    """

    operations: int
    payload: float
    sent: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """Assumed figures of a device; see `Budget.expected`.

    Attributes:
        peak_flops: FLOP/s by its data sheet, in the precision of the run.
        utilisation: the share of it that matrix products reach.
        link_bytes: bytes per second that each device sends; None: communication costs no time.
    """

    peak_flops: float
    utilisation: float
    link_bytes: float | None = None

    def __post_init__(self) -> None:
        if self.peak_flops <= 0 or not 0 < self.utilisation <= 1 or (self.link_bytes or 1) <= 0:
            raise ValueError(
                f"expected a positive peak, a utilisation in (0, 1] and positive bytes per second, found {self}"
            )


@dataclasses.dataclass(frozen=True)
class Budget:
    """A step's cost.

    Attributes:
        flops: of matrix products and convolutions on each device, recomputation included.
        traffic: by kind of collective, on each device.
        images: of the global batch.
    """

    flops: float
    traffic: Mapping[str, Traffic]
    images: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends per step."""
        return sum(traffic.sent for traffic in self.traffic.values())

    def expected(self, machine: Machine) -> dict[str, float]:
        """Seconds per step and images per second, with communication behind the arithmetic, or after it."""
        compute = self.flops / (machine.peak_flops * machine.utilisation)
        communication = 0.0 if machine.link_bytes is None else self.sent / machine.link_bytes
        return {
            "compute_seconds": compute,
            "communication_seconds": communication,
            "images_per_second_if_overlapped": self.images / max(compute, communication),
            "images_per_second_if_not": self.images / (compute + communication),
        }


def machine_of(options: argparse.Namespace) -> Machine | None:
    """The machine that the options of the training command describe, if they do.

    Raises:
        ValueError: figures that no machine has.
    """
    if options.peak_tflops is None:
        return None
    link = None if options.link_gbytes is None else options.link_gbytes * 1e9
    return Machine(options.peak_tflops * 1e12, options.utilisation, link)


def matrix_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a traced program, on all devices together.

    Loops count as often as they run (while loops without a known count once), of branches the most expensive one.
    Products with the zeros that strides insert into a backward pass are not counted.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec
        taps = math.prod(kernel[axis] for axis in spec[2:]) * kernel[spec[1]]
        # The kernel's input features are those of one group already; batch groups divide the batch instead.
        outputs = equation.outvars[0].aval.size
        return 2.0 * outputs * taps / math.prod(parameters["lhs_dilation"])
    if name == "cond":
        return max(matrix_flops(branch.jaxpr) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    if name == "shard_map":
        # Inside, shapes are those of one device.
        mesh = parameters["mesh"]
        times = math.prod(mesh.shape[axis] for axis in parameters.get("manual_axes", mesh.axis_names))
    return times * sum(matrix_flops(inner) for inner in _inner(parameters.values()))


def _inner(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def communication(program: str) -> dict[str, Traffic]:
    """The collectives of a compiled program (`compiled.as_text()`) on each device, as often as loops run.

    Raises:
        ValueError: groups of devices written in a way that is not known here.
    """
    own, calls, entry = _computations(program)
    times: dict[str, float] = {}

    def visit(name: str, factor: float) -> None:
        times[name] = times.get(name, 0.0) + factor
        for called, trips in calls.get(name, ()):
            visit(called, factor * trips)

    visit(entry, 1.0)
    totals: dict[str, Traffic] = {}
    for name, factor in times.items():
        for kind, traffic in own.get(name, ()):
            before = totals.get(kind, Traffic(0, 0.0, 0.0))
            totals[kind] = Traffic(
                before.operations + round(factor),
                before.payload + factor * traffic.payload,
                before.sent + factor * traffic.sent,
            )
    return {kind: totals[kind] for kind in KINDS if kind in totals}


def _computations(program: str) -> tuple[dict[str, list[Any]], dict[str, list[tuple[str, float]]], str]:
    """Collectives and calls of every computation, and the name of the one that is run."""
    own: dict[str, list[Any]] = {}
    calls: dict[str, list[tuple[str, float]]] = {}
    name = entry = ""
    for line in program.splitlines():
        header = _HEADER.match(line)
        if header:
            name = header["name"]
            entry = name if header["entry"] else entry
            continue
        found = _COLLECTIVE.search(line)
        if found:
            own.setdefault(name, []).append((found["kind"], _traffic(found)))
        elif any(word in line for word in (" while(", " conditional(", " call(", " async-start(")):
            trips = _TRIPS.search(line)
            times = float(trips[1]) if trips and " while(" in line else 1.0
            branches = _BRANCHES.search(line)
            called = _CALLED.findall(line) + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])
            calls.setdefault(name, []).extend((one, times) for one in called)
    return own, calls, entry


def _traffic(found: re.Match[str]) -> Traffic:
    kind = found["kind"]
    members = 2 if kind == "collective-permute" else _members(found["rest"])
    payload = float(
        sum(_bytes(dtype, shape) for dtype, shape in _ARRAY.findall(found["type"]) if shape or not found["start"])
    )
    # What is started ahead gives its operands back beside its results.
    if found["start"] and kind == "all-gather":
        payload *= members / (members + 1)
    if found["start"] and kind == "collective-permute":
        payload /= 2
    others = (members - 1) / members
    factor = {"all-reduce": 2 * others, "reduce-scatter": members - 1.0, "collective-permute": 1.0}.get(kind, others)
    return Traffic(1, payload, factor * payload)


def _members(rest: str) -> int:
    """Count the devices of a communication group: listed, as an array's last axis, or as axes of a named mesh."""
    if found := _GROUPS_LISTED.search(rest):
        return len(found[1].split(","))
    if found := _GROUPS_COUNTED.search(rest):
        return int(found[1].split(",")[-1])
    if found := _GROUPS_NAMED.search(rest):
        sizes = dict(re.findall(r"'([^']+)'=([0-9]+)", found[1]))
        # A part of an axis is written as 'axis':(before)size.
        used = re.findall(r"'([^']+)'(?::\([0-9]+\)([0-9]+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in used)
    raise ValueError(f"groups of devices in a form that is not known: {rest[:200]}")


def _bytes(dtype: str, shape: str) -> float:
    sizes = [int(size) for size in shape.split(",") if size]
    return float(np.prod(sizes, dtype=np.float64)) * _BITS.get(dtype, 32) / 8


def lines(budget: Budget, machine: Machine | None) -> list[str]:
    """The budget as `--dry-run` prints it."""
    text = [f"{'matrix_flops_per_device':34s} {budget.flops / 1e12:10.4g} TFLOP per step (as often as loops run)"]
    for kind, traffic in budget.traffic.items():
        text.append(
            f"{kind:34s} {traffic.payload / 2**30:10.4g} GiB in {traffic.operations} operations, per device and step"
        )
    text.append(f"{'sent_per_device':34s} {budget.sent / 2**30:10.4g} GiB per step, if rings are used")
    if machine is None:
        return text
    assumed = f"{machine.peak_flops / 1e12:g} TFLOP/s at {machine.utilisation:g}"
    if machine.link_bytes is not None:
        assumed += f", {machine.link_bytes / 1e9:g} GB/s sent"
    text.append(f"expected of devices with {assumed} (assumed, not measured):")
    for name, value in budget.expected(machine).items():
        text.append(f"  {name:32s} {value:10.4g}")
    return text
