"""Any trainer of nnU-Net, made comparable: seeded by its fold, of a given length, safe to kill."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmf_plugins.errors import UsageError
from dmf_plugins.nnunet.finder import find_trainer
from dmf_plugins.trials.digest import network_digest
from dmf_plugins.trials.plan import EPOCH
from dmf_plugins.trials.score import INITIAL

CHECKPOINTS = 20  # per training


def trial_trainer(
    base: str,
    folder: str,
    epochs: int | None,
    iterations: int | None,
    attributes: Mapping[str, Any],
) -> type:
    """Subclass of the trainer ``base``, which keeps its name, and so its place in nnU-Net's results.

    Args:
        base: name of a trainer nnU-Net finds.
        folder: of the cell, where the training notes how far it is.
        epochs, iterations: length of a training and of an epoch; None for the trainer's own.
        attributes: of the class, such as ``dmf``.
    """
    parent: Any = find_trainer(base)
    if parent is None:
        raise UsageError(f"nnU-Net does not find the trainer {base}")

    def seed(self: Any, number: int) -> None:
        fold = self.fold if isinstance(self.fold, int) else 0
        for one in (random.seed, np.random.seed, torch.manual_seed):
            one(100_000 * fold + number)

    def initialize(self: Any) -> None:
        if iterations:
            self.num_iterations_per_epoch = iterations
            self.num_val_iterations_per_epoch = max(1, iterations // 5)  # as 250 and 50
        self.num_epochs = epochs or self.num_epochs
        self.save_every = max(1, self.num_epochs // CHECKPOINTS)
        if threads := os.environ.get("OMP_NUM_THREADS"):  # nnU-Net takes all cores on a CPU
            torch.set_num_threads(int(threads))
        seed(self, 0)
        parent.initialize(self)

    def on_train_start(self: Any) -> None:
        parent.on_train_start(self)
        if self.current_epoch == 0:
            digest = network_digest(self.network.state_dict())
            (Path(folder) / INITIAL).write_text(digest)

    def on_epoch_start(self: Any) -> None:
        seed(self, 1 + self.current_epoch)  # so that a continued training sees the same images
        parent.on_epoch_start(self)

    def on_epoch_end(self: Any) -> None:
        parent.on_epoch_end(self)
        (Path(folder) / EPOCH).write_text(str(self.current_epoch))

    def save_checkpoint(self: Any, filename: Any) -> None:
        if not isinstance(filename, str):
            parent.save_checkpoint(self, filename)
            return
        partial = f"{filename}.partial"  # nnU-Net's own is not written whole
        parent.save_checkpoint(self, partial)
        if os.path.exists(partial):
            os.replace(partial, filename)

    methods = (initialize, on_train_start, on_epoch_start, on_epoch_end, save_checkpoint)
    return type(parent.__name__, (parent,), {m.__name__: m for m in methods} | dict(attributes))
