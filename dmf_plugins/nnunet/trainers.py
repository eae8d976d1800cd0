"""The trainers ``nnUNetv2_train -tr`` finds. Settings differ by class, as nnU-Net wants it."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from dmf_plugins.nnunet.mixin import DMFTrainerMixin


class nnUNetTrainerDMF(DMFTrainerMixin, nnUNetTrainer):
    """Variance weighting with CB-Dice as auxiliary loss, the paper's best."""


class nnUNetTrainerDMF_Fixed(nnUNetTrainerDMF):
    """Equal fixed weights and no auxiliary loss, the paper's baseline."""

    dmf = {"weighting": "fixed", "auxiliary": None}


class nnUNetTrainerDMF_Quick(nnUNetTrainerDMF):
    """Two epochs of 25 iterations, to try an installation; a short memory, so that weights move."""

    dmf = {"memory_size": 30, "min_history": 10, "decay_interval": 5}

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        # nnU-Net reads its arguments by the names of this signature
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 2
        self.num_iterations_per_epoch = 25
        self.num_val_iterations_per_epoch = 5


class nnUNetTrainerDMF_Variance_CBDice(nnUNetTrainerDMF):
    dmf = {"weighting": "variance", "auxiliary": "cb_dice"}


class nnUNetTrainerDMF_Variance_Tversky(nnUNetTrainerDMF):
    dmf = {"weighting": "variance", "auxiliary": "tversky"}


class nnUNetTrainerDMF_Variance_Focal(nnUNetTrainerDMF):
    dmf = {"weighting": "variance", "auxiliary": "focal"}


class nnUNetTrainerDMF_Variance_NoAux(nnUNetTrainerDMF):
    dmf = {"weighting": "variance", "auxiliary": None}


class nnUNetTrainerDMF_MAD_CBDice(nnUNetTrainerDMF):
    dmf = {"weighting": "mad", "auxiliary": "cb_dice"}


class nnUNetTrainerDMF_MAD_Tversky(nnUNetTrainerDMF):
    dmf = {"weighting": "mad", "auxiliary": "tversky"}


class nnUNetTrainerDMF_MAD_Focal(nnUNetTrainerDMF):
    dmf = {"weighting": "mad", "auxiliary": "focal"}


class nnUNetTrainerDMF_MAD_NoAux(nnUNetTrainerDMF):
    dmf = {"weighting": "mad", "auxiliary": None}


class nnUNetTrainerDMF_Bayesian_CBDice(nnUNetTrainerDMF):
    dmf = {"weighting": "bayesian", "auxiliary": "cb_dice"}


class nnUNetTrainerDMF_Bayesian_Tversky(nnUNetTrainerDMF):
    dmf = {"weighting": "bayesian", "auxiliary": "tversky"}


class nnUNetTrainerDMF_Bayesian_Focal(nnUNetTrainerDMF):
    dmf = {"weighting": "bayesian", "auxiliary": "focal"}


class nnUNetTrainerDMF_Bayesian_NoAux(nnUNetTrainerDMF):
    dmf = {"weighting": "bayesian", "auxiliary": None}


TRAINERS = {
    name: trainer
    for name, trainer in list(vars().items())
    if isinstance(trainer, type)
    and issubclass(trainer, DMFTrainerMixin)
    and name != "DMFTrainerMixin"
}
