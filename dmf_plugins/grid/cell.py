"""One cell: train and test through mmengine's Runner, score, write the result last."""

from __future__ import annotations

import copy
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

import dmf_plugins
import dmf_plugins.mmseg
from dmf_plugins.grid.plan import GridPlan
from dmf_plugins.paths import bundled
from dmf_plugins.trials.engine import Cell
from dmf_plugins.trials.mmseg import resume, set_length  # registers TrialHook too
from dmf_plugins.trials.score import INITIAL, score

CONFIG = "unet_dmf_busi-128x128.py"
VALIDATIONS = 10  # a training


def run_cell(plan: GridPlan, cell: Cell) -> dict[str, Any]:
    """Train, test and score one cell; one that was killed continues from its checkpoint.

    Returns:
        The content of ``result.json``: scores of the best checkpoint, by lesion Dice on the
        validation part, on the test part.
    """
    start = time.monotonic()
    config = cell_config(plan, cell)
    resume(config, cell)
    config.dump(str(cell.folder / "config.py"))

    runner = Runner.from_cfg(copy.deepcopy(config))
    runner.train()
    best = cell.folder / "work" / Path(runner.message_hub.get_info("best_ckpt")).name  # if moved
    validation = runner.message_hub.get_info("best_score")

    config.load_from, config.resume = str(best), False
    config.experiment_name = f"{config.experiment_name}_test"
    config.visualizer.name = config.experiment_name
    scores = Runner.from_cfg(config).test()
    truth = plan.data_root(cell.seed) / "ann_dir" / "test"
    distances = score(cell, cell.folder / "predictions", truth, {"lesion": 1}).summary["lesion"]
    shutil.copy(cell.folder / "work" / "dmf_log.csv", cell.folder / "dmf_log.csv")
    shutil.rmtree(cell.folder / "work")  # checkpoints of many cells fill a disk

    result = {
        "setting": cell.setting,
        "seed": cell.seed,
        "options": cell.options,
        "initial_weights": (cell.folder / INITIAL).read_text(),
        "validation_lesion_dice": float(validation),
        "best_checkpoint": best.name,
        "test": {name: float(value) for name, value in scores.items()},
        "test_hd95_pixels": distances["hd95"]["mean"],
        "seconds": round(time.monotonic() - start),
        "versions": {"dmf_plugins": dmf_plugins.__version__, "torch": torch.__version__},
    }
    cell.finish(result)
    return result


def cell_config(plan: GridPlan, cell: Cell) -> Config:
    """The bundled U-Net config with the settings of one cell."""
    # mmengine would format the config for every checkpoint, which takes longer than an epoch
    path = bundled("mmseg_configs") / CONFIG
    config = Config.fromfile(path, format_python_code=False)
    set_length(config, plan.epochs)
    scale = (plan.size, plan.size)
    for part in ("train", "val", "test"):
        loader = config[f"{part}_dataloader"]
        loader.num_workers = 0  # the cells are the parallelism; also the order of random numbers
        loader.persistent_workers = False
        loader.batch_size = plan.batch_size
        loader.dataset.data_root = str(plan.data_root(cell.seed))
        for step in loader.dataset.pipeline:
            if step.type == "Resize":
                step.scale = scale
    interval = max(1, plan.epochs // VALIDATIONS)
    loss = {"type": "DMFLoss", **cell.options}
    config.merge_from_dict(
        {
            "work_dir": str(cell.folder / "work"),
            "experiment_name": f"{cell.setting}_{cell.seed}",
            "randomness": {"seed": cell.seed},
            "train_cfg.val_interval": interval,
            "default_hooks.checkpoint.interval": interval,
            "default_hooks.checkpoint.max_keep_ckpts": 2,  # mmengine removes one before it writes one
            "model.data_preprocessor.size": scale,
            "model.backbone.base_channels": plan.filters,
            "model.decode_head.in_channels": plan.filters,
            "model.decode_head.channels": plan.filters,
            "custom_hooks": [
                {"type": "DMFHook"},
                {"type": "TrialHook", "folder": str(cell.folder)},
            ],
            "test_evaluator": [
                {"type": "DMFMetric", "tolerance": 1.0},
                {
                    "type": "IoUMetric",
                    "format_only": True,
                    "output_dir": str(cell.folder / "predictions"),
                },
            ],
            **plan.cfg_options,
        }
    )
    config.model.decode_head.loss_decode = loss
    config.visualizer.name = config.experiment_name
    return config
