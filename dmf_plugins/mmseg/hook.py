"""Checkpoint, resume and log of every DMFLoss in a model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from dmf_plugins.mmseg.checkpoint import from_plain, to_plain
from dmf_plugins.mmseg.loss import MMSegDMFLoss
from dmf_plugins.report.recorder import Recorder

CHECKPOINT_KEY = "dmf"
_STEPS = "dmf/steps"  # in mmengine's message hub, which a checkpoint keeps
_RESUME = ("same", "new", "afresh")
_ADVICE = (
    "Restore the settings of the saved run; or go on with the new ones: DMFHook(resume='new') in the "
    "config, --cfg-options custom_hooks.0.resume=new or DMF_RESUME=new before the command; or begin "
    "with an empty memory: resume='afresh' likewise"
)


@HOOKS.register_module()
class DMFHook(Hook):
    """Saves, resumes and logs every ``DMFLoss`` of the model, and tells it where a step begins.

    A step is what happens between two updates of the optimizer: a head that calls its loss several
    times, or several micro-batches whose gradients are accumulated, make one record, the mean.

    Weights and gamma become scalars (``dmf/weight_ce``, ...; with several heads
    ``dmf/decode_head/weight_ce``) that LoggerHook prints. Visualizer backends get the terms too, with
    the auxiliary term and the total, as means over LoggerHook's window. Every step goes to
    ``dmf_log.csv`` in the work directory, with ``dmf_dynamics.png``.

    Args:
        interval: iterations between transfers from the device; scalars are refreshed as often.
            None takes the LoggerHook's.
        resume: what ``--resume`` does with the memory. ``same`` takes it and refuses other settings
            than those of the saved run; ``new`` takes it and goes on with the new settings;
            ``afresh`` leaves it. None takes the environment variable ``DMF_RESUME``, else ``same``.

    Raises:
        RuntimeError: the model has no DMFLoss, or heads and data set disagree on the classes; or a
            resumed checkpoint has no memory, or one of other settings.
    """

    priority = "NORMAL"

    def __init__(self, interval: int | None = None, resume: str | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.interval = interval
        self.resume: Any = resume or os.environ.get("DMF_RESUME") or "same"
        if self.resume not in _RESUME:
            raise ValueError(
                f"resume (or DMF_RESUME) must be one of {_RESUME}, got {self.resume!r}"
            )
        self._losses: dict[str, MMSegDMFLoss] = {}
        self._recorders: dict[str, Recorder] = {}
        self._steps = 0
        self._iterations = 0  # of the step under way

    def before_run(self, runner: Runner) -> None:
        self._losses = dict(dmf_losses(runner.model))
        for module in self._losses.values():
            module.hooked = True

    def before_train(self, runner: Runner) -> None:
        check(runner, self._losses)
        if self.interval is None:
            loggers = [h for h in runner.hooks if type(h).__name__ == "LoggerHook"]
            self.interval = loggers[0].interval if loggers else 10
        # earlier checkpoints hold no number of steps; there was one for each iteration
        self._steps = runner.message_hub.get_info(_STEPS, runner.iter) if runner.iter else 0
        accumulated = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        for path, module in self._losses.items():
            module.loss.plan(math.ceil(runner.max_iters / accumulated))
            self._recorders[path] = self._recorder(runner, path, accumulated)
            self._recorders[path].start(self._steps, "step")

    def _recorder(self, runner: Runner, path: str, accumulated: int) -> Recorder:
        name = self._name(path)
        prefix = f"{name}: " if name else ""
        return Recorder(
            self._losses[path].loss,
            runner.work_dir,
            "_".join(["dmf", *name.split(".")]).rstrip("_"),
            say=lambda text: runner.logger.info(prefix + text),
            warn=lambda text: runner.logger.warning(prefix + text),
            main=is_main_process(),
            epoch_steps=math.ceil(len(runner.train_dataloader) / accumulated),
        )

    def _name(self, path: str) -> str:
        """Name of a head in logs, where there are several."""
        return "" if len(self._losses) == 1 else head_of(path)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._iterations == 0:
            for module in self._losses.values():
                module.begin_step()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._iterations += 1
        updated = getattr(runner.optim_wrapper, "should_update", None)
        if updated is None or updated():
            self._remember(runner)
        # counted as LoggerHook counts, so that what it logs is fresh
        if (
            self.every_n_inner_iters(batch_idx, self.interval)
            or self.end_of_epoch(runner.train_dataloader, batch_idx)
            or self.is_last_train_iter(runner)
        ):
            self._flush(runner)

    def _remember(self, runner: Runner) -> None:
        for path, module in self._losses.items():
            recorder = self._recorders[path]
            if module.calls:
                recorder.remember()
                # what mmengine shows as this head's loss
                recorder.pending[-1][-1] *= module.loss_weight / self._iterations
            elif self._steps == 0:
                recorder.warn(f"{path} was not called: its head takes its loss from elsewhere")
        self._steps, self._iterations = self._steps + 1, 0
        runner.message_hub.update_info(_STEPS, self._steps)

    def _flush(self, runner: Runner) -> None:
        others = {}
        for path, recorder in self._recorders.items():
            tag = f"dmf/{self._name(path)}".rstrip("/")
            table = recorder.flush(runner.epoch)
            if table.empty:
                continue
            means = table.tail(runner.log_processor.window_size).mean()
            for column in recorder.loss.columns:
                # LoggerHook prints all scalars, and averages those with 'loss' in their names
                name = f"{tag}/{column}".replace("loss", "term")
                if column.startswith(("weight_", "gamma")):
                    runner.message_hub.update_scalar(f"train/{name}", table[column].iloc[-1])
                elif not math.isnan(means[column]):  # no auxiliary loss
                    others[name] = float(means[column])
        if others:
            runner.visualizer.add_scalars(others, step=runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            path: module.loss.state_dict_dmf() for path, module in self._losses.items()
        }
        checkpoint["message_hub"] = to_plain(checkpoint["message_hub"])
        self._flush(runner)
        self._draw()

    def after_train(self, runner: Runner) -> None:
        self._draw(final=True)

    def _draw(self, final: bool = False) -> None:
        for recorder in self._recorders.values():
            recorder.draw(final)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        from_plain(checkpoint.get("message_hub"))
        if not runner._resume or self.resume == "afresh":  # load_from: network weights alone
            return
        states = checkpoint.get(CHECKPOINT_KEY)
        if not states:
            raise RuntimeError(
                "the checkpoint to resume holds no DMF memory: it was written without DMFHook. To "
                "start from its network weights with an empty memory use load_from without resume; "
                "to take its optimizer and epoch too, DMF_RESUME=afresh"
            )
        losses = dict(dmf_losses(runner.model))  # FlexibleRunner loads ahead of before_run
        if set(states) != set(losses):
            raise RuntimeError(
                f"the checkpoint to resume has DMF memories for {sorted(states)}, the model for "
                f"{sorted(losses)}; use the config it was trained with, or DMF_RESUME=afresh"
            )
        for path, module in losses.items():
            try:
                module.loss.load_state_dict_dmf(states[path], self.resume)
            except ValueError as error:
                raise RuntimeError(f"cannot resume {path}: {error}. {_ADVICE}") from error


def dmf_losses(model: Any) -> Iterator[tuple[str, MMSegDMFLoss]]:
    """Every DMFLoss of a model (wrapped or not) with its dotted path."""
    plain = model.module if is_model_wrapper(model) else model
    for path, module in plain.named_modules():
        if isinstance(module, MMSegDMFLoss):
            yield path, module


def head_of(path: str) -> str:
    """Name of a loss in logs: its path without ``loss_decode``."""
    return path.replace(".loss_decode", "")


def check(runner: Runner, losses: dict[str, MMSegDMFLoss]) -> None:
    """Raise ``RuntimeError`` for what would train wrongly or not at all."""
    if sum(isinstance(hook, DMFHook) for hook in runner.hooks) > 1:
        raise RuntimeError("DMFHook is registered twice; leave one of them in custom_hooks")
    if not losses:
        raise RuntimeError(
            "DMFHook found no DMFLoss in the model; set loss_decode=dict(type='DMFLoss') in a head, "
            "or remove the hook. Heads that assign masks to queries (Mask2Former, MaskFormer) have no "
            "loss per pixel that it could replace; docs/mmseg.md says what holds for every head"
        )
    classes = (getattr(runner.train_dataloader.dataset, "metainfo", None) or {}).get("classes")
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    for path, module in losses.items():
        _check_rates(runner, path, module)
        head = model.get_submodule(path.partition(".loss_decode")[0])
        number = getattr(head, "num_classes", None)
        # auxiliary heads may have labels of their own, such as boundaries
        if classes and number and path.startswith("decode_head") and number != len(classes):
            raise RuntimeError(
                f"{head_of(path)} has num_classes={number}, but the data set {len(classes)} classes "
                f"({', '.join(classes)}): set model.decode_head.num_classes={len(classes)}"
            )


def _check_rates(runner: Runner, path: str, module: MMSegDMFLoss) -> None:
    """Warn of learned weights that share the learning rate or weight decay of their head."""
    learned = {id(parameter) for parameter in module.parameters()}
    optimizer = runner.optim_wrapper.optimizer
    for group in optimizer.param_groups if learned else ():
        if learned.isdisjoint(map(id, group["params"])):
            continue
        rate = group.get("initial_lr", group["lr"]) / optimizer.defaults["lr"]
        decay = group.get("weight_decay", 0)
        if rate != 1 or decay:
            cure = "lr_mult=1., decay_mult=0." if decay else "lr_mult=1."
            runner.logger.warning(
                f"the learned weights of {path} have {rate:g} times the learning rate and weight "
                f"decay {decay:g}; add to optim_wrapper.paramwise_cfg: "
                f"custom_keys=dict(log_variance=dict({cure}))"
            )
