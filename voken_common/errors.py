"""Errors that several modules raise and users may want to catch."""

from voken_common.untrusted.text import escape


class EscapedError(Exception):
    """An error whose text may hold names from files; whoever prints it gets them escaped. The arguments stay."""

    def __str__(self) -> str:
        return escape(super().__str__())


class UserError(EscapedError, ValueError):
    """Input that cannot be used; the message is meant for the user."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, refused, or not what the caller needs; the message says which and why."""


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written; the message names the file or array."""


class WorkdirError(UserError):
    """A work directory that cannot be used: another run holds it, or it cannot be written to."""


class UnavailableError(EscapedError, RuntimeError):
    """Something that this machine or its network does not give: a device, other processes, a download."""


class NonFiniteError(EscapedError, ArithmeticError):
    """A loss or gradient norm stopped being finite; the update was not kept.

    Attributes:
        step: number of the step that was not taken, counted from 1.
        terms: names of the metrics that were not finite.
    """

    def __init__(self, step: int, terms: list[str], *, batch: object = None, skipped: int = 0):
        kept = f" Its batch is in {batch}; the same command with --replay {batch} shows what it does." if batch else ""
        after = f" after {skipped} skipped batch(es) (health.max_skipped)" if skipped else ""
        super().__init__(
            f"step {step}: not finite: {', '.join(terms)}. The update was not kept and training stops here{after}; the "
            "last checkpoint is good. Lower the learning rate, clip gradients (optimizer.gradient_clip) or look at the "
            f"data of that step.{kept}"
        )
        self.step, self.terms = step, terms


class RefusedError(CheckpointError):
    """A checkpoint that names objects which are not data; nothing of it was run."""
