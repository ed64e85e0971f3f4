"""Log of a run: TensorBoard scalars and pictures, a progress bar, and messages that do not break it."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from voken_common.training.collapse import CollapseWatch
from voken_common.training.metrics_file import MetricsFile
from voken_common.visual import gif, save_png

logger = logging.getLogger("voken")

SHOWN = ("total_loss", "reconstruction_loss", "codebook_entropy")
"""Metrics that a tokenizer's progress bar shows."""


class RunLog:
    """Writer and progress bar of one run; a context manager. Without a terminal every logging step is one line.

    Args:
        workdir: event files go to `tensorboard/`, numbers to `metrics.jsonl`, pictures to `pictures/`.
        total_steps: length of the run.
        first_step: where it continues.
        images_per_step: global batch size, for the rate.
        rates: further rates that are logged: name -> what one image counts for.
        collapse: looks at the codes that validations use.
        unit: what a batch is made of, images or clips.
        enabled: False on all processes but the first: nothing is written or shown.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        total_steps: int,
        first_step: int,
        images_per_step: int,
        rates: Mapping[str, float] | None = None,
        collapse: CollapseWatch | None = None,
        unit: str = "images",
        enabled: bool = True,
    ):
        self.collapse, self._unit = collapse, unit
        self._workdir, self._enabled, self._images = Path(workdir), enabled, images_per_step
        self._rates = {f"{unit}_per_second": 1.0, **(rates or {})}
        self._writer = _event_writer(self._workdir / "tensorboard") if enabled else None
        self._file = MetricsFile(self._workdir, first_step) if enabled else None
        self._total, self._to_screen = total_steps, sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            # A log that goes to a file has a line per logging step instead.
            disable=not (enabled and self._to_screen),
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.5,
        )
        self._last: tuple[float, float] = (time.perf_counter(), first_step)

    def advance(self) -> None:
        """One step more; `training` takes back those that were refused."""
        self._bar.update()

    def scalars(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """Numbers for TensorBoard and `metrics.jsonl`."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(prefix + name, value, step)
        if self._file:
            self._file.write(step, {prefix + name: value for name, value in values.items()})

    def training(self, step: int, values: Mapping[str, float], shown: tuple[str, ...]) -> None:
        """Training scalars with the rate since the last call; `shown` ones go to the progress bar too."""
        now, (then, since) = time.perf_counter(), self._last
        rate = (step - since) * self._images / max(now - then, 1e-9)
        self._last = (now, step)
        self._bar.update(step - self._bar.n)
        rates = {name: rate * factor for name, factor in self._rates.items()}
        self.scalars(step, {**values, **rates}, prefix="train/")
        texts = [f"{name}={values[name]:.4g}" for name in shown if name in values]
        if {"codebook_usage", "codebook_usage_possible"} <= values.keys():
            texts.append(usage_text(values["codebook_usage"], values["codebook_usage_possible"]))
        text = "  ".join([f"{rate:.1f} {self._unit}/s", *texts])
        self._bar.set_postfix_str(text, refresh=False)
        if not self._to_screen:
            self.message(f"step {step}/{self._total}  {text}")

    def pause(self, step: int) -> None:
        """Leave the time until now out of the next rate: validation and saving are not training."""
        self._last = (time.perf_counter(), step)

    def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture for TensorBoard, and as `pictures/<name>_<step>.png`."""
        if self._writer:
            self._writer.add_image(name, picture, step, dataformats="HWC")
            save_png(self._workdir / "pictures" / f"{name}_{step:08d}.png", picture)

    def clips(self, step: int, name: str, frames: UInt8[np.ndarray, "t h w 3"], rate: int = 8) -> None:
        """A moving picture: animated in TensorBoard's images, and as `pictures/<name>_<step>.mp4` where PyAV is."""
        if not self._writer:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif(frames, rate))
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        from voken_common.data.video.writing import VideoWriter

        with contextlib.suppress(ImportError):
            with VideoWriter(self._workdir / "pictures" / f"{name}_{step:08d}.mp4", rate=Fraction(rate)) as writer:
                for number, frame in enumerate(frames):
                    writer.write(frame, Fraction(number, rate))

    def message(self, text: str) -> None:
        """A line above the progress bar."""
        if self._enabled:
            tqdm.write(text, file=sys.stderr)

    def flush(self) -> None:
        """Bring what was logged to the disk: a run that continues at a checkpoint does not log the steps before it."""
        if self._writer:
            self._writer.flush()

    def warning(self, text: str) -> None:
        """Show a warning above the progress bar; it goes to the program's log too."""
        if self._enabled:
            with tqdm.external_write_mode(file=sys.stderr):
                logger.warning(text)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file:
            self._file.close()
        if self._writer:
            self._writer.close()


def usage_text(used: float, possible: float) -> str:
    """The share of the codes that was used beside the share that so many tokens can use: few use few."""
    return f"codebook_usage={used:.2%} of {possible:.2%} possible"


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second Ctrl-C interrupts at once.

    Args:
        signals: those that are listened to.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.requested, self._signals = False, signals

    def __enter__(self) -> StopRequest:
        self._previous = {s: signal.signal(s, self._receive) for s in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        logger.info("stopping after this step (Ctrl-C again: at once, without a checkpoint)")


def _event_writer(folder: Path) -> Any:
    # Imported late: tensorboardX loads torch where it is installed.
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder))
