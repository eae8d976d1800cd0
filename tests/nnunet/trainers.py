"""Trainers a user might write, found by nnU-Net through nnUNet_extTrainer."""

import os
import random

import numpy as np
import torch

from dmf_plugins.nnunet import nnUNetTrainerDMF


class nnUNetTrainerDMF_Mine(nnUNetTrainerDMF):
    dmf = {"losses": ["ce", "dice"], "auxiliary": "tversky", "memory_size": 12, "min_history": 4}

    def initialize(self):
        self.num_iterations_per_epoch = 6
        self.num_val_iterations_per_epoch = 2
        self.num_epochs = int(os.environ.get("TEST_EPOCHS", "2"))
        self.save_every = 1
        torch.manual_seed(0)
        super().initialize()

    def on_epoch_start(self):
        # so that an interrupted training sees the data an uninterrupted one does
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(self.current_epoch)
        super().on_epoch_start()

    def on_epoch_end(self):
        super().on_epoch_end()
        if self.current_epoch == int(os.environ.get("TEST_CRASH_AFTER", "-1")):
            os._exit(9)


class nnUNetTrainerDMF_OtherMemory(nnUNetTrainerDMF_Mine):
    dmf = {**nnUNetTrainerDMF_Mine.dmf, "memory_size": 20}
