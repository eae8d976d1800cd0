"""Trainers a user might write, found by nnU-Net through nnUNet_extTrainer."""

import os
import random
import signal

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
        self.logger.plot_progress_png = lambda folder: None  # nnU-Net's own, a second each epoch

    def on_epoch_start(self):
        # so that an interrupted training sees the data an uninterrupted one does
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(10 * self.current_epoch + self.local_rank)
        super().on_epoch_start()

    def train_step(self, batch):
        killed_in = int(os.environ.get("TEST_KILL_IN_EPOCH", "-1"))
        if self.current_epoch == killed_in and len(self._dmf.pending) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)
