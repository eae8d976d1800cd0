"""A copy of a trained model that nnU-Net runs without this plug-in."""

from __future__ import annotations

import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from dmf_plugins.atomic import building
from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.nnunet.finder import find_trainer
from dmf_plugins.nnunet.mixin import CHECKPOINT_KEY
from dmf_plugins.nnunet.trainers import TRAINERS
from dmf_plugins.paths import lies_in, regular

_COPIED = ("plans.json", "dataset.json", "dataset_fingerprint.json")


def export_nnunet(model: Path, output: Path | None = None, *, overwrite: bool = False) -> Path:
    """Copy a model folder with the trainer renamed to the stock one it builds on.

    The loss takes no part in prediction, so stock nnU-Net predicts the same. It loads the copy before
    that appears.

    Args:
        model: ``nnUNet_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION``.
        output: folder to write; None for the stock trainer's name beside ``model``, where
            ``nnUNetv2_predict`` looks when no trainer is named.
        overwrite: replace an existing folder.

    Returns:
        The folder written.

    Raises:
        UsageError: ``output`` exists, or the trainer is stock or has a network of its own.
        DataError: ``model`` is no model folder, or a file of it cannot be read.
    """
    checkpoints = sorted(model.glob("fold_*/checkpoint_*.pth"))
    missing = [name for name in _COPIED[:2] if not (model / name).is_file()]
    if missing or not checkpoints:
        lacks = missing[0] if missing else "fold_X/checkpoint_final.pth"
        raise DataError(f"{model} is no trained nnU-Net model: it lacks {lacks}")
    names = {_load(path)["trainer_name"] for path in checkpoints}
    if len(names) > 1:
        raise DataError(f"{model} mixes checkpoints of the trainers {', '.join(sorted(names))}")
    stock = stock_trainer(names.pop()).__name__
    if output is None:  # not where nnU-Net trains: --c would go on from it
        output = model.with_name(f"{model.name}_exported")
    if lies_in(model, output):
        raise UsageError(f"{output} holds the model itself; choose another folder")
    with building(output, "export", overwrite) as folder:
        for name in _COPIED:
            if (model / name).is_file():
                shutil.copy(model / name, folder / name)
        for path in checkpoints:
            checkpoint = _load(path)
            checkpoint.pop(CHECKPOINT_KEY, None)
            checkpoint["trainer_name"] = stock
            (folder / path.parent.name).mkdir(exist_ok=True)
            torch.save(checkpoint, folder / path.parent.name / path.name)
            _check(folder, model, path)
    return output


def stock_trainer(name: str) -> type[nnUNetTrainer]:
    """The class of nnU-Net itself that trainer ``name`` builds on.

    Raises:
        UsageError: the trainer cannot be found, is that class, or builds another network.
    """
    trainer = TRAINERS.get(name) or find_trainer(name)
    if trainer is None:
        raise UsageError(f"the trainer {name} is not found; add its folder to nnUNet_extTrainer")
    stock: type[nnUNetTrainer] = next(
        base for base in trainer.__mro__ if base.__module__.startswith("nnunetv2.")
    )
    if trainer is stock:
        raise UsageError(f"{name} is nnU-Net's own; its model needs no export")
    if trainer.build_network_architecture is not stock.build_network_architecture:
        raise UsageError(f"{name} builds a network of its own, which stock nnU-Net cannot")
    return stock


def _check(folder: Path, model: Path, checkpoint: Path) -> None:
    """Let nnU-Net itself load the copy in ``folder`` of a checkpoint of ``model``."""
    try:
        with redirect_stdout(StringIO()):
            nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(
                str(folder), (checkpoint.parent.name.removeprefix("fold_"),), checkpoint.name
            )
    except Exception as error:
        raise DataError(
            f"nnU-Net cannot load {checkpoint} with {model / 'plans.json'} and dataset.json "
            f"({error!r}); nothing was written"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        # nnU-Net's own checkpoints hold NumPy numbers, which weights_only refuses
        checkpoint = torch.load(regular(path), map_location="cpu", weights_only=False)
        checkpoint["trainer_name"]
    except Exception as error:
        raise DataError(f"{path} is not a readable nnU-Net checkpoint ({error!r})") from error
    return checkpoint
