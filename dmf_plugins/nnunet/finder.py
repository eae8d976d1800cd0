"""A trainer by its name, as nnU-Net's commands find it."""

from __future__ import annotations

import contextlib
import io
import os

import nnunetv2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def find_trainer(name: str) -> type[nnUNetTrainer] | None:
    """Class of a trainer; None if nnU-Net does not find it."""
    found: type[nnUNetTrainer] | None
    try:  # from 2.8 on, which knows nnUNet_extTrainer
        from nnunetv2.utilities.find_objects import (  # noqa: PLC0415
            recursive_find_trainer_class_by_name,
        )
    except ImportError:
        from nnunetv2.utilities.find_class_by_name import (  # noqa: PLC0415
            recursive_find_python_class,
        )

        folder = os.path.join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
        found = recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
        return found
    try:
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # where it looks, which is nobody's question
            found = recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        return None
    return found
