"""Training steps of nnU-Net and MMSegmentation with DMF against their own losses.

python benchmarks/epoch.py Dataset_BUSI_with_GT --work /tmp/bench --steps 12

The same network, batch and optimizer take turns with each loss through the framework's own step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import torch
from common import heading, interleaved, table

from dmf_plugins.data import convert_dataset
from dmf_plugins.paths import bundled

DATASET_ID = 992


def nnunet_jobs(data: Path, work: Path, batch_size: int, device: str) -> dict[str, object]:
    """``train_step`` of stock nnU-Net and of nnUNetTrainerDMF on one real batch."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(work / name)
        (work / name).mkdir(parents=True, exist_ok=True)
    os.environ.update(nnUNet_compile="f", nnUNet_def_n_proc="2")
    dataset = work / "nnUNet_raw" / f"Dataset{DATASET_ID}_BUSI"
    preprocessed = work / "nnUNet_preprocessed" / dataset.name
    if not (preprocessed / "nnUNetPlans.json").exists():
        convert_dataset("busi", data, dataset_id=DATASET_ID, size=(128, 128), overwrite=True)
        plan = Path(sysconfig.get_path("scripts")) / "nnUNetv2_plan_and_preprocess"
        command = [
            sys.executable,
            plan,
            "-d",
            str(DATASET_ID),
            "-c",
            "2d",
            "-npfp",
            "2",
            "-np",
            "2",
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
    os.environ["nnUNet_n_proc_DA"] = "0"  # augment here; the planner cannot bear this
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["batch_size"] = batch_size
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from dmf_plugins.nnunet import nnUNetTrainerDMF

    jobs = {}
    batch = None
    for trainer_class in (nnUNetTrainer, nnUNetTrainerDMF):
        fresh = {**plans, "continue_training": False}  # taken out by the trainer
        trainer = trainer_class(fresh, "2d", 0, dataset_json, torch.device(device))
        trainer.on_train_start()
        batch = batch or next(trainer.dataloader_train)
        trainer.on_train_epoch_start()
        jobs[trainer_class.__name__] = partial(trainer.train_step, batch)
    return jobs


def mmseg_jobs(data: Path, work: Path) -> dict[str, object]:
    """``train_step`` of the bundled U-Net with mmseg's CE + Dice and with DMFLoss and its hook's work."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    import dmf_plugins.mmseg  # noqa: F401  registers DMFLoss

    if not (work / "data" / "BUSI").exists():
        convert_dataset("busi", data, "mmseg", output=work / "data", size=(128, 128))
    jobs = {}
    stock = [
        dict(type="CrossEntropyLoss", loss_name="loss_ce"),
        dict(type="DiceLoss", loss_name="loss_dice"),
    ]
    for name, loss in (("mmseg CE + DiceLoss", stock), ("DMFLoss", dict(type="DMFLoss"))):
        config = Config.fromfile(bundled("mmseg_configs") / "unet_dmf_busi-128x128.py")
        config.work_dir = str(work / "mmseg" / name.replace(" ", ""))
        config.experiment_name = config.visualizer.name = name.replace(" ", "")
        config.custom_hooks = []
        config.model.decode_head.loss_decode = loss
        loader = config.train_dataloader
        loader.dataset.data_root = str(work / "data" / "BUSI")
        loader.num_workers, loader.persistent_workers, loader.batch_size = 0, False, 4
        runner = Runner.from_cfg(config)
        runner.model.train()
        optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
        batch = next(iter(runner.build_dataloader(config.train_dataloader)))
        dmf = getattr(runner.model.decode_head.loss_decode, "dmf", None)
        rows: list[torch.Tensor] = []

        def step(runner: Runner = runner, batch=batch, optimizer=optimizer, dmf=dmf) -> None:
            runner.model.train_step(batch, optimizer)
            if dmf is not None:
                rows.append(dmf.last_row())  # noqa: B023  the default of its argument

        jobs[name] = step
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="BUSI folder or zip")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    work = args.work.resolve()
    rows = []
    for build in (
        lambda: nnunet_jobs(args.data, work, args.batch_size, args.device),
        lambda: mmseg_jobs(args.data, work),
    ):
        seconds = interleaved(build(), args.steps, warmup=2)  # type: ignore[arg-type]
        base = next(iter(seconds.values()))
        rows += [[name, f"{1e3 * s:.0f}", f"{s / base:.3f}x"] for name, s in seconds.items()]
    heading("Training step")
    table(["", "median ms per step", "ratio to the stock loss"], rows)


if __name__ == "__main__":
    main()
