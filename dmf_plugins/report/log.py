"""``dmf_log.csv``: one row a training step with the value and weight of every term."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

LOG_NAME = "dmf_log.csv"


class DMFLog:
    """Appends steps to a CSV and can go back to an earlier epoch when training resumes.

    Columns: ``epoch``, ``step`` (within the training, from 0), ``value_NAME`` and ``weight_NAME``
    for each term, ``auxiliary`` (empty without one), ``gamma``, ``total``.

    Args:
        path: the file; created with its header on the first write.
        names: names of the terms.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = [
            "epoch",
            "step",
            *(f"value_{name}" for name in names),
            *(f"weight_{name}" for name in names),
            "auxiliary",
            "gamma",
            "total",
        ]
        self.steps = 0

    def truncate(self, before: int, column: Literal["epoch", "step"] = "epoch") -> None:
        """Keep only rows whose ``column`` is less than ``before``: a resumed training continues there.

        A last line cut short by a crash is dropped. A file with other columns is kept aside as
        ``dmf_log.old.csv``.
        """
        self.steps = 0
        if not self.path.exists():
            return
        table = pd.read_csv(self.path, on_bad_lines="skip", dtype=str, keep_default_na=False)
        if list(table.columns) != self.columns:
            os.replace(self.path, self.path.with_suffix(".old.csv"))
            return
        complete = table["total"] != ""
        earlier = pd.to_numeric(table[column], errors="coerce") < before
        table = table[complete & earlier]
        partial = self.path.with_suffix(".partial")
        table.to_csv(partial, index=False)
        os.replace(partial, self.path)
        self.steps = len(table)

    def append(self, epoch: int, rows: np.ndarray) -> None:
        """Add the steps of one epoch.

        Args:
            epoch: number of the epoch.
            rows: ``[steps, 2 N + 3]`` in the order of the columns after ``step``.
        """
        table = pd.DataFrame(rows, columns=self.columns[2:])
        table.insert(0, "step", np.arange(self.steps, self.steps + len(rows)))
        table.insert(0, "epoch", epoch)
        table.to_csv(
            self.path, mode="a", header=not self.path.exists(), index=False, float_format="%.9g"
        )
        self.steps += len(rows)


def read_log(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The log as a table; raises ``FileNotFoundError`` or ``ValueError`` naming the file."""
    table = pd.read_csv(path)
    if "gamma" not in table.columns or "epoch" not in table.columns:
        raise ValueError(f"{path} is not a {LOG_NAME}: it lacks the columns 'epoch' and 'gamma'")
    return table
