"""One training of MMSegmentation: a config of the user, a setting of the loss, a seed."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner
from PIL import Image

from dmf_plugins.errors import DataError, UsageError, describe
from dmf_plugins.mmseg import MMSegDMFLoss  # registers DMFHook too
from dmf_plugins.mmseg.checkpoint import from_plain, last_checkpoint, to_plain
from dmf_plugins.trials.digest import network_digest
from dmf_plugins.trials.engine import Cell
from dmf_plugins.trials.plan import EPOCH, TrialPlan, check_options, own_settings
from dmf_plugins.trials.score import INITIAL, finish, score

STOCK = "stock"
IGNORE = 255
BACKGROUND = ("background", "bg", "unlabeled", "others")


@HOOKS.register_module()
class TrialHook(Hook):
    """Notes in the cell's folder how the network began and how far the training is.

    Its checkpoints are plain data.
    """

    priority = "VERY_LOW"

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0:
            digest = network_digest(runner.model.state_dict())
            (self.folder / INITIAL).write_text(digest)

    def after_train_epoch(self, runner: Runner) -> None:
        (self.folder / EPOCH).write_text(str(runner.epoch + 1))

    # as DMFHook does, which a stock config has not: torch reads the file without trusting it
    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["message_hub"] = to_plain(checkpoint["message_hub"])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        from_plain(checkpoint.get("message_hub"))


@METRICS.register_module()
class TrialDump(BaseMetric):
    """Writes truth and prediction of every test image as PNG, classes counted from 1."""

    def __init__(self, folder: str) -> None:
        super().__init__(collect_device="cpu")
        self.folder = Path(folder)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        first = _first(self.dataset_meta["classes"])
        for sample in data_samples:
            name = f"{Path(sample['img_path']).stem}.png"
            if (self.folder / "images" / name).exists():
                raise DataError(
                    f"two test images are called {name}; a trial needs names that differ"
                )
            for part, key in (("predictions", "pred_sem_seg"), ("truth", "gt_sem_seg")):
                labels = sample[key]["data"].squeeze().cpu().numpy()
                ranks = np.where(labels == IGNORE, IGNORE, labels + first).astype(np.uint8)
                Image.fromarray(ranks).save(self.folder / part / name)
            shutil.copy(sample["img_path"], self.folder / "images" / name)
            self.results.append(name)

    def compute_metrics(self, results: list[str]) -> dict[str, float]:
        return {"images": len(results)}


def settings(entries: Sequence[str], variants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``stock`` and settings of DMFLoss by name.

    Raises:
        UsageError: a setting is no object, is refused, or its name cannot be a folder's.
    """
    check = partial(check_options, loss=MMSegDMFLoss)
    own = own_settings(variants, "--setting", (STOCK,), check)
    return {name: {} if name == STOCK else {"dmf": own[name]} for name in entries}


def check(plan: TrialPlan) -> None:
    """Raise ``UsageError`` for a config that cannot be read or has no loss to replace."""
    for cell in plan.cells()[: len(plan.settings)]:
        config = cell_config(plan, cell)
        if cell.setting == STOCK and any(h["type"] == "DMFHook" for h in config.custom_hooks):
            print(
                f"note: the loss of {plan.options['config']} is DMFLoss already; stock is that loss"
            )


def cell_config(plan: TrialPlan, cell: Cell) -> Config:
    """The user's config with the loss, seed, length and folder of a cell."""
    path = plan.options["config"]
    try:
        # mmengine would format the config for every checkpoint, which takes seconds
        config = Config.fromfile(path, format_python_code=False)
    except OSError as error:
        raise UsageError(f"cannot read the config {describe(error)}") from error
    except (SyntaxError, KeyError, ValueError, ImportError) as error:
        raise UsageError(f"{path} is no config that mmengine reads: {error}") from error
    config.merge_from_dict(plan.options["cfg_options"])
    for name in ("model", "train_dataloader", "test_dataloader", "train_cfg"):
        if config.get(name) is None:
            raise UsageError(f"{path} has no {name}; a trial needs one to train and to test")
    head = config.model.get("decode_head")
    heads = head if isinstance(head, (list, tuple)) else [head]
    if head is None or any(h is None or h.get("loss_decode") is None for h in heads):
        raise UsageError(
            f"{path} has no model.decode_head.loss_decode, so there is no loss to replace; heads with a "
            "loss of their own (Mask2Former) cannot be tried"
        )
    if "dmf" in cell.options:
        for one in heads:
            one.loss_decode = {"type": "DMFLoss", **cell.options["dmf"]}
    hooks = [h for h in config.get("custom_hooks") or [] if h["type"] != "DMFHook"]
    losses = [h.loss_decode for h in heads]
    if any(loss.get("type") == "DMFLoss" for loss in losses if isinstance(loss, dict)):
        hooks.append({"type": "DMFHook"})
    config.custom_hooks = [*hooks, {"type": "TrialHook", "folder": str(cell.folder)}]
    given = config.get("default_hooks") or {}
    saving = {"type": "CheckpointHook", **(given.get("checkpoint") or {})}
    saving |= {"save_last": True, "out_dir": None}
    if saving.get("by_epoch", True):
        saving.setdefault("interval", 1)  # a killed cell goes on from the last
    if saving.get("max_keep_ckpts") == 1:
        saving["max_keep_ckpts"] = 2  # mmengine removes the old one before it writes the new one
    config.default_hooks = {**given, "checkpoint": saving}
    config.work_dir = str(cell.folder / "work")
    config.experiment_name = f"trial_{cell.setting}_{cell.seed}"
    config.randomness = {**config.get("randomness", {}), "seed": cell.seed}
    if plan.epochs:
        set_length(config, plan.epochs)
    return config


def set_length(config: Config, epochs: int) -> None:
    """Train for so many epochs. What lasted as long as the training still does; a warm-up stays as it is.

    Raises:
        UsageError: the config counts iterations, or the learning rate would change too late.
    """
    if config.train_cfg.get("by_epoch") is False or "max_iters" in config.train_cfg:
        raise UsageError(
            "--epochs does not fit a config that counts iterations; use "
            "--cfg-options train_cfg.max_iters=N"
        )
    before = config.train_cfg.max_epochs
    config.train_cfg.max_epochs = epochs
    given = config.get("param_scheduler") or []
    for scheduler in [given] if isinstance(given, dict) else given:
        if not scheduler.get("by_epoch", True):
            continue
        begin, written = scheduler.get("begin", 0), dict(scheduler)
        for name, start in (("end", 0), ("T_max", begin), ("total_steps", begin)):
            if (scheduler.get(name) or 0) >= before - start:
                scheduler[name] = epochs - start
        steps = (0, scheduler.get("step_size", 0), *scheduler.get("milestones", ()))
        changes = [begin + step for step in steps] + [scheduler.get("end", 1) - 1]
        if any(epochs <= change < before for change in changes):
            raise UsageError(
                f"--epochs {epochs} is over before the config's {written} is; give a shorter "
                "one by --cfg-options param_scheduler=[...], or more epochs"
            )


def run(plan: TrialPlan, cell: Cell) -> None:
    """Train, or continue, and score the last network on the test part."""
    start = time.monotonic()
    config = cell_config(plan, cell)
    resume(config, cell)
    config.dump(str(cell.folder / "config.py"))
    Runner.from_cfg(copy.deepcopy(config)).train()

    for part in ("predictions", "truth", "images"):
        shutil.rmtree(cell.folder / part, ignore_errors=True)
        (cell.folder / part).mkdir()
    config.resume = False
    config.load_from = str(last_checkpoint(cell.folder / "work"))
    config.experiment_name += "_test"
    config.test_evaluator = {"type": "TrialDump", "folder": str(cell.folder)}
    if config.get("visualizer"):
        config.visualizer.name = config.experiment_name
    tester = Runner.from_cfg(config)
    tester.test()
    classes = tester.test_dataloader.dataset.metainfo["classes"]
    first = _first(classes)
    labels = {name: i + first for i, name in enumerate(classes) if i + first > 0}
    predictions = cell.folder / "predictions"
    evaluation = score(cell, predictions, truth(plan, cell), labels, IGNORE)
    log = cell.folder / "work" / "dmf_log.csv"
    finish(cell, evaluation, predictions=predictions, log=log, start=start)


def resume(config: Config, cell: Cell) -> None:
    """Go on from the last checkpoint, where there is one."""
    last = last_checkpoint(cell.folder / "work")
    config.resume = last is not None and last.is_file()
    if config.resume:
        config.load_from = str(last)  # or mmengine would take the place it was written to


def truth(plan: TrialPlan, cell: Cell) -> Path:
    """Folder of the label maps a cell was scored against."""
    return cell.folder / "truth"


def images(plan: TrialPlan, cell: Cell) -> Path:
    """Folder of the images."""
    return cell.folder / "images"


def manifest(plan: TrialPlan) -> Path:
    """Where a converter has named the groups of the cases."""
    dataset = Config.fromfile(plan.options["config"]).test_dataloader.dataset
    return Path(dataset.get("data_root") or ".") / "manifest.csv"


def _first(classes: Sequence[str]) -> int:
    """Number of the first class: 0 for a background, which is not scored, else 1."""
    return 0 if classes[0].lower() in BACKGROUND else 1
