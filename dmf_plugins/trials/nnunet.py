"""One training of nnU-Net: a trainer, a fold, validated and scored case by case."""

from __future__ import annotations

import json
import os
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dmf_plugins.core.config import DMFConfig
from dmf_plugins.demo import usable_device
from dmf_plugins.errors import DataError, UsageError, needs
from dmf_plugins.paths import bundled
from dmf_plugins.trials.engine import Cell
from dmf_plugins.trials.plan import TrialPlan, check_options, own_settings
from dmf_plugins.trials.score import finish, score

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
CLASS = "nnUNetTrainerOfThisCell"


def settings(trainers: str, variants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Trainers as settings, and DMF settings without a class of their own.

    Raises:
        UsageError: a variant is no object, its options are refused, or its name is taken.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"trainer": name} for name in trainers.split(",") if name
    }
    own = own_settings(variants, "--setting", found, _check_options)
    return found | {n: {"trainer": "nnUNetTrainerDMF", "dmf": o} for n, o in own.items()}


def _check_options(setting: str, options: dict[str, Any]) -> None:
    if check_options(setting, options).fusion.learned:
        raise UsageError(
            f"setting {setting}: nnU-Net cannot learn the weights of {options['weighting']!r}; choose "
            "another weighting"
        )


def check(plan: TrialPlan) -> None:
    """Refuse what nnU-Net would refuse hours later.

    Raises:
        UsageError: a folder of nnU-Net is not set, or a trainer, fold or configuration is unknown.
        DataError: the data set is not preprocessed.
    """
    for name in FOLDERS[:2]:
        if not os.environ.get(name):
            raise UsageError(f"{name} is not set; nnU-Net needs it (dmf doctor looks at all of it)")
    _find_trainers()
    with needs("nnunet,evaluate"):
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from dmf_plugins.nnunet.finder import find_trainer
    folder, plans, configuration = dataset_folder(plan), plan.options["plans"], _name(plan)
    path = folder / f"{plans}.json"
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; run: nnUNetv2_plan_and_preprocess -d {plan.options['dataset']}"
        )
    manager = PlansManager(str(path))
    known = manager.plans["configurations"]
    if configuration not in known:
        raise UsageError(f"{path} has no configuration {configuration!r}, only {', '.join(known)}")
    cases = folder / manager.get_configuration(configuration).data_identifier
    if not cases.is_dir():
        raise DataError(
            f"{cases} does not exist; run: nnUNetv2_preprocess -d {plan.options['dataset']} "
            f"-plans_name {plans} -c {configuration}"
        )
    splits = folder / "splits_final.json"
    folds = len(json.loads(splits.read_text())) if splits.is_file() else 5
    for fold in plan.seeds:
        if not 0 <= fold < folds:
            raise UsageError(f"--folds: {folder.name} has folds 0 to {folds - 1}, not {fold}")
    for setting in plan.settings.values():
        if find_trainer(setting["trainer"]) is None:
            raise UsageError(
                f"nnU-Net does not find the trainer {setting['trainer']}; put its file into a folder "
                "named in nnUNet_extTrainer (nnU-Net >= 2.8), or see dmf doctor"
            )


def dataset_folder(plan: TrialPlan) -> Path:
    """Preprocessed folder of the data set, given by number or name.

    Raises:
        DataError: there is none.
    """
    root, given = Path(os.environ["nnUNet_preprocessed"]), str(plan.options["dataset"])
    pattern = f"Dataset{int(given):03d}_*" if given.isdecimal() else given
    found = [path for path in root.glob("*") if path.is_dir() and fnmatchcase(path.name, pattern)]
    if len(found) != 1:
        raise DataError(
            f"{root} holds {len(found)} data sets {pattern!r}, one is needed; run: "
            f"nnUNetv2_plan_and_preprocess -d {given}"
        )
    return found[0]


def run(plan: TrialPlan, cell: Cell) -> None:
    """Train by nnU-Net's own command in this process, or continue it, then score the validation part."""
    start = time.monotonic()
    _find_trainers(_write_trainer(plan, cell))
    os.environ["nnUNet_results"] = str(cell.folder / "results")
    from nnunetv2.run.run_training import run_training_entry

    options = plan.options
    arguments = [options["dataset"], _name(plan), cell.seed, "-tr", CLASS, "-p", options["plans"]]
    arguments += ["-device", usable_device(options["device"])]
    if any(cell.folder.glob("results/*/*/fold_*/checkpoint_*.pth")):
        arguments.append("--c")
    sys.argv = ["nnUNetv2_train", *map(str, arguments)]
    run_training_entry()

    folder = dataset_folder(plan)
    (fold,) = cell.folder.glob("results/*/*/fold_*")
    labels, ignore = _labels(json.loads((folder / "dataset.json").read_text())["labels"])
    predictions = fold / "validation"
    evaluation = score(cell, predictions, truth(plan, cell), labels, ignore, partial=True)
    finish(cell, evaluation, predictions=predictions, log=fold / "dmf_log.csv", start=start)


def truth(plan: TrialPlan, cell: Cell) -> Path:
    """Folder of the label maps a cell was scored against."""
    return dataset_folder(plan) / "gt_segmentations"


def images(plan: TrialPlan, cell: Cell) -> Path:
    """Folder of the images, named as nnU-Net names them."""
    return Path(os.environ.get("nnUNet_raw", "")) / dataset_folder(plan).name / "imagesTr"


def manifest(plan: TrialPlan) -> Path:
    """Where a converter has named the groups of the cases."""
    return images(plan, plan.cells()[0]).parent / "manifest.csv"


def _name(plan: TrialPlan) -> str:
    return str(plan.options["configuration"])


def _find_trainers(*more: Path) -> None:
    """Let nnU-Net find the user's trainers, ours, and that of a cell."""
    folders = [os.environ.get("nnUNet_extTrainer", ""), str(bundled("nnunet_trainers"))]
    folders += map(str, more)
    parts = [part for folder in folders for part in folder.split(os.pathsep) if part]
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(dict.fromkeys(parts))


def _write_trainer(plan: TrialPlan, cell: Cell) -> Path:
    """nnU-Net is configured by classes alone, so every cell has one."""
    options = cell.options.get("dmf", {})
    names = DMFConfig.__dataclass_fields__
    dmf = {k: v for k, v in options.items() if k in names}
    arguments: dict[str, Any] = {
        "base": cell.options["trainer"],
        "folder": str(cell.folder),
        "epochs": plan.epochs,
        "iterations": plan.options["iterations"],
        "attributes": {"dmf": dmf, "dmf_loss": {k: v for k, v in options.items() if k not in names}}
        if "dmf" in cell.options
        else {},
    }
    folder = cell.folder / "trainer"
    folder.mkdir(exist_ok=True)
    (folder / f"{cell.folder.name}_trainer.py").write_text(
        "from dmf_plugins.trials.nnunet_trainer import trial_trainer\n\n"
        f"{CLASS} = trial_trainer(**{arguments!r})\n"
    )
    return folder


def _labels(given: dict[str, Any]) -> tuple[dict[str, int], int | None]:
    """Foreground labels to score and the label to ignore; of regions, the labels they consist of."""
    labels: dict[str, int] = {}
    for name, value in given.items():
        if name != "ignore":
            for label in value if isinstance(value, list) else [value]:
                if label != 0 and label not in labels.values():
                    labels[name if not isinstance(value, list) else f"label {label}"] = int(label)
    return labels, given.get("ignore")
