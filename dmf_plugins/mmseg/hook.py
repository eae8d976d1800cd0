"""Checkpoint, resume and log of every DMFLoss in a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from dmf_plugins.mmseg.checkpoint import allow_log
from dmf_plugins.mmseg.loss import DMFLoss
from dmf_plugins.report.dynamics import plot_dynamics
from dmf_plugins.report.log import DMFLog

CHECKPOINT_KEY = "dmf"


class TrackedLoss:
    """One DMFLoss with its place in the model, its log file and the steps not yet written."""

    def __init__(self, path: str, module: DMFLoss, folder: Path, only: bool) -> None:
        self.path = path
        self.module = module
        self.tag = "dmf" if only else f"dmf/{path.replace('.loss_decode', '')}"
        stem = "dmf" if only else f"dmf_{path.replace('.loss_decode', '').replace('.', '_')}"
        self.log = DMFLog(folder / f"{stem}_log.csv", module.dmf.names)
        self.picture = folder / f"{stem}_dynamics.png"
        self.pending: list[Tensor] = []

    @property
    def state(self) -> dict[str, Any]:
        return self.module.dmf.fusion.state_dict_dmf()

    def remember(self) -> None:
        """Keep the last step, on its device."""
        self.pending.append(self.module.dmf.last_row())

    def flush(self) -> Any:
        """Bring the pending steps over in one transfer; ``[steps, columns]``."""
        rows = torch.stack(self.pending).cpu().numpy()
        self.pending.clear()
        return rows

    def scalars(self, row: Any) -> dict[str, float]:
        """Entries of one row of the log by their name for visualizer backends."""
        named = zip(self.log.columns[2:], map(float, row), strict=True)
        # mmengine takes every key with 'loss' in it for a part of the objective
        return {
            f"{self.tag}/{column}".replace("loss", "term"): value
            for column, value in named
            if not math.isnan(value)  # no auxiliary loss
        }


@HOOKS.register_module()
class DMFHook(Hook):
    """Saves, resumes and logs every :class:`DMFLoss` of the model.

    Terms, weights, gamma and the auxiliary term become scalars (``dmf/weight_ce``, ...; with several
    heads ``dmf/decode_head/weight_ce``) that LoggerHook, TensorBoard and W&B pick up. Every step goes
    to ``dmf_log.csv`` in the log folder's parent, the work directory, with ``dmf_dynamics.png``.

    Args:
        interval: iterations between transfers from the device; scalars are refreshed as often.
            None takes the LoggerHook's.

    Raises:
        RuntimeError: the model has no DMFLoss; or a resumed checkpoint has no memory, or one of
            other settings.
    """

    priority = "NORMAL"

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.interval = interval
        self._tracked: list[TrackedLoss] = []
        self._skipped = 0

    def before_run(self, runner: Runner) -> None:
        allow_log()
        found = list(dmf_losses(runner.model))
        folder = Path(runner.work_dir)
        self._tracked = [TrackedLoss(p, module, folder, len(found) == 1) for p, module in found]
        for _, module in found:
            module.hooked = True

    def before_train(self, runner: Runner) -> None:
        if not self._tracked:
            raise RuntimeError(
                "DMFHook found no DMFLoss in the model; set loss_decode=dict(type='DMFLoss') in a "
                "head, or remove the hook"
            )
        if self.interval is None:
            loggers = [h for h in runner.hooks if type(h).__name__ == "LoggerHook"]
            self.interval = loggers[0].interval if loggers else 10
        self._skipped = self._count_skipped()
        self._rewind(runner)

    @master_only
    def _rewind(self, runner: Runner) -> None:
        for tracked in self._tracked:
            tracked.log.truncate(runner.iter, column="step")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for tracked in self._tracked:
            if tracked.module.dmf.last:
                tracked.remember()
        # counted as LoggerHook counts, so that what it logs is fresh
        if (
            self.every_n_inner_iters(batch_idx, self.interval)
            or self.end_of_epoch(runner.train_dataloader, batch_idx)
            or self.is_last_train_iter(runner)
        ):
            self._flush(runner)

    def _flush(self, runner: Runner) -> None:
        for tracked in self._tracked:
            if not tracked.pending:
                continue
            rows = tracked.flush()
            self._write(tracked, runner.epoch, rows)
            for name, value in tracked.scalars(rows[-1]).items():
                runner.message_hub.update_scalar(f"train/{name}", value)
        skipped = self._count_skipped()
        if skipped > self._skipped:
            runner.logger.warning(
                f"{skipped - self._skipped} step(s) had an infinite or NaN loss and were left out of "
                "the DMF memory; a few are normal under mixed precision"
            )
            self._skipped = skipped

    @master_only
    def _write(self, tracked: TrackedLoss, epoch: int, rows: Any) -> None:
        tracked.log.append(epoch, rows)

    def _count_skipped(self) -> int:
        return sum(int(tracked.module.dmf.fusion.skipped) for tracked in self._tracked)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {tracked.path: tracked.state for tracked in self._tracked}
        self._flush(runner)
        self._draw(runner)

    def after_train(self, runner: Runner) -> None:
        self._draw(runner)

    @master_only
    def _draw(self, runner: Runner) -> None:
        for tracked in self._tracked:
            if not tracked.log.steps:
                continue
            try:
                plot_dynamics(tracked.log.path, tracked.picture)
            except Exception as error:  # no picture is worth a training of days
                runner.logger.warning(f"{tracked.picture.name} was not drawn: {error!r}")

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        allow_log()
        if not runner._resume:  # load_from starts a new training from old network weights
            return
        states = checkpoint.get(CHECKPOINT_KEY)
        if not states:
            raise RuntimeError(
                "the checkpoint to resume holds no DMF memory: it was written without DMFHook. To "
                "start from its network weights with an empty memory use load_from without resume"
            )
        paths = [tracked.path for tracked in self._tracked]
        if set(states) != set(paths):
            raise RuntimeError(
                f"the checkpoint to resume has DMF memories for {sorted(states)}, the model for "
                f"{sorted(paths)}; use the config it was trained with"
            )
        for tracked in self._tracked:
            try:
                tracked.module.dmf.fusion.load_state_dict_dmf(states[tracked.path])
            except ValueError as error:
                raise RuntimeError(f"cannot resume {tracked.path}: {error}") from error


def dmf_losses(model: Any) -> Iterator[tuple[str, DMFLoss]]:
    """Every DMFLoss of a model (wrapped or not) with its dotted path."""
    plain = model.module if is_model_wrapper(model) else model
    for path, module in plain.named_modules():
        if isinstance(module, DMFLoss):
            yield path, module
