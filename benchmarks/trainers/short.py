"""Short trainings of stock nnU-Net and of DMF, alike in everything but the loss."""

from __future__ import annotations

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from dmf_plugins.nnunet import DMFTrainerMixin


class Short:
    """``BENCH_EPOCHS`` epochs of 50 iterations from the same initial network."""

    def initialize(self) -> None:
        self.num_epochs = int(os.environ.get("BENCH_EPOCHS", "6"))
        self.num_iterations_per_epoch = 50
        self.num_val_iterations_per_epoch = 10
        torch.manual_seed(int(os.environ.get("BENCH_SEED", "0")))
        super().initialize()


class nnUNetTrainer_Short(Short, nnUNetTrainer):
    """Stock loss: Dice + cross-entropy."""


class nnUNetTrainerDMF_Short(Short, DMFTrainerMixin, nnUNetTrainer):
    """The defaults of nnUNetTrainerDMF."""


class nnUNetTrainerDMF_FixedShort(Short, DMFTrainerMixin, nnUNetTrainer):
    """Our terms with equal fixed weights and no auxiliary loss."""

    dmf = {"weighting": "fixed", "auxiliary": None}
