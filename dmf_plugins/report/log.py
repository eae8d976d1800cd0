"""``dmf_log.csv``: one row a training step with the value and weight of every term."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from dmf_plugins.errors import DataError

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

        A last line cut short by a crash is dropped. A file that is no such log is kept aside as
        ``dmf_log.old.csv``, unless it is empty.
        """
        self.steps = 0
        if not self.path.exists() or self.path.stat().st_size == 0:  # the disk was full
            self.path.unlink(missing_ok=True)
            return
        try:
            table = pd.read_csv(
                _lines(self.path), on_bad_lines="skip", dtype=str, keep_default_na=False
            )
        except ValueError:  # no table at all
            table = pd.DataFrame()
        if list(table.columns) != self.columns:
            os.replace(self.path, self.path.with_suffix(".old.csv"))
            return
        table = table[pd.to_numeric(table[column], errors="coerce") < before]
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


class LogError(DataError, ValueError):
    """A file is no log, or one of a training that has recorded no step."""


def _lines(path: str | os.PathLike[str]) -> io.BytesIO:
    """The file without a last line that a crash, or a writer at work, cut short."""
    content = Path(path).read_bytes()
    return io.BytesIO(content[: content.rfind(b"\n") + 1])


def read_log(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The log as a table; raises ``FileNotFoundError`` or :class:`LogError` naming the file."""
    try:
        table = pd.read_csv(_lines(path))
    except ValueError as error:
        raise LogError(f"{path} is not a {LOG_NAME}: {error}") from error
    names = [c.removeprefix("value_") for c in table.columns if c.startswith("value_")]
    needed = DMFLog(path, names or ["NAME"]).columns
    if missing := [column for column in needed if column not in table.columns]:
        raise LogError(f"{path} is not a {LOG_NAME}: it lacks the columns {', '.join(missing)}")
    if table.empty:
        raise LogError(f"{path} holds no step yet")
    if words := [column for column in needed if not is_numeric_dtype(table[column])]:
        raise LogError(f"{path} is damaged: {', '.join(words)} hold something else than numbers")
    return table
