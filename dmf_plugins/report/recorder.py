"""What a training leaves behind of one DMFLoss: every step, a picture, and words for the user."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dmf_plugins.losses.dmf import DMFLoss
from dmf_plugins.report.dynamics import plot_dynamics
from dmf_plugins.report.log import DMFLog

_ALONE = 0.99  # a weight above it leaves nothing to the other terms
_DRAW_SECONDS = 60.0  # a picture takes about one


class Recorder:
    """Keeps each step on its device; writes ``STEM_log.csv`` and ``STEM_dynamics.png`` when told to.

    Every process of a training has one and calls it alike; only ``main`` writes and speaks.

    Args:
        loss: the loss to record.
        folder: where the files go.
        stem: how their names begin.
        say, warn: show a line to the user.
        main: whether this process writes.
        epoch_steps: steps per epoch, for the warning about a weight that stays near 1.
    """

    def __init__(
        self,
        loss: DMFLoss,
        folder: str | os.PathLike[str],
        stem: str = "dmf",
        *,
        say: Callable[[str], object],
        warn: Callable[[str], object],
        main: bool = True,
        epoch_steps: int = 250,
    ) -> None:
        self.loss = loss
        self.log = DMFLog(Path(folder) / f"{stem}_log.csv", loss.names)
        self.picture = Path(folder) / f"{stem}_dynamics.png"
        self.say, self.warn = say, warn
        self.main = main
        self.epoch_steps = epoch_steps
        self.pending: list[Tensor] = []
        self._skipped = 0
        self._alone = 0
        self._drawn = 0  # steps in the picture
        self._drawn_at = -math.inf

    def start(self, before: int, column: Literal["epoch", "step"] = "epoch") -> None:
        """Say what trains, and keep only logged rows whose ``column`` is less than ``before``."""
        if not self.main:
            return
        self.say(f"DMF: {self.loss.describe()}")
        if step := int(self.loss.fusion.step):
            self.say(f"DMF: resumed at step {step} with weights {self.named(self.loss.weights)}")
        self._skipped = int(self.loss.fusion.skipped)
        self.log.truncate(before, column)

    def remember(self) -> None:
        """Keep the loss's last row, once a step however many calls it has."""
        self.pending.append(self.loss.last_row())

    def flush(self, epoch: int) -> pd.DataFrame:
        """Bring the kept steps over in one transfer, log them as steps of ``epoch``; a row per step."""
        columns = self.log.columns[2:]
        if not self.pending:
            return pd.DataFrame(columns=columns)
        skipped = self.loss.fusion.skipped.to(self.pending[0]).reshape(1)
        numbers = torch.cat((*self.pending, skipped)).cpu().numpy()
        table = pd.DataFrame(numbers[:-1].reshape(len(self.pending), -1), columns=columns)
        self.pending.clear()
        if self.main:
            self.log.append(epoch, table.to_numpy())
            self._report_skipped(int(numbers[-1]))
            self._report_alone(table.filter(like="weight_").to_numpy())
        return table

    def draw(self, final: bool = False) -> None:
        """Draw the log, once a minute at most unless it is ``final``.

        A failure is only reported, since no picture is worth a training of days.
        """
        early = time.monotonic() - self._drawn_at < _DRAW_SECONDS and not final
        if not self.main or early or self.log.steps == self._drawn:
            return
        self._drawn, self._drawn_at = self.log.steps, time.monotonic()
        try:
            plot_dynamics(self.log.path, self.picture)
        except Exception as error:
            self.warn(f"{self.picture.name} was not drawn: {error!r}")

    def named(self, weights: Iterable[float]) -> str:
        """Weights with the names of their terms, for a line of text."""
        pairs = zip(self.loss.names, weights, strict=True)
        return ", ".join(f"{name} {float(weight):.3f}" for name, weight in pairs)

    def _report_skipped(self, skipped: int) -> None:
        if skipped > self._skipped:
            self.warn(
                f"{skipped - self._skipped} step(s) had an infinite or NaN loss and were left out of "
                "the DMF memory; a few are normal under mixed precision"
            )
        self._skipped = skipped

    def _report_alone(self, weights: np.ndarray) -> None:
        shared = np.flatnonzero(weights.max(axis=1) <= _ALONE)
        alone = len(weights) - 1 - shared[-1] if len(shared) else self._alone + len(weights)
        if len(self.loss.names) > 1 and alone >= self.epoch_steps > self._alone:
            self.warn(
                f"for {alone} steps one term has trained alone, with DMF weights "
                f"{self.named(weights[-1])}; min_weight=0.05 keeps the others, or choose another "
                "weighting"
            )
        self._alone = alone
