"""The end of a cell, whatever trained it: its predictions scored, its result written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from dmf_plugins.metrics.evaluate import PER_IMAGE, Evaluation, evaluate_folders
from dmf_plugins.trials.engine import Cell

INITIAL = "initial_weights.txt"  # digest of the network a training began with


def score(
    cell: Cell,
    predictions: Path,
    truth: Path,
    labels: Mapping[str, int],
    ignore_index: int | None = None,
    partial: bool = False,
) -> Evaluation:
    """Score what a cell predicted, and keep the scores of every image in its folder.

    Args:
        cell: the training.
        predictions: folder of label maps.
        truth: folder of label maps.
        labels: class -> value of those to score.
        ignore_index: label of the truth to leave out.
        partial: some of ``truth`` is not predicted.
    """
    evaluation = evaluate_folders(
        predictions, truth, labels, ignore_index=ignore_index, partial=partial, workers=1
    )
    evaluation.per_image.to_csv(cell.folder / PER_IMAGE, index=False, float_format="%.6g")
    return evaluation


def finish(
    cell: Cell, evaluation: Evaluation, *, predictions: Path, log: Path, start: float
) -> None:
    """Write the result of a trial's cell.

    Args:
        cell: the training.
        evaluation: of its predictions.
        predictions: folder in the cell's.
        log: of weights and terms, where there is one.
        start: of the run that finished it, by ``time.monotonic``.
    """
    known = {name: row["mean"] for name, row in evaluation.summary["lesion"].items() if row["n"]}
    cell.finish(
        {
            "setting": cell.setting,
            "repeat": cell.folder.name,
            "options": cell.options,
            "initial_weights": (cell.folder / INITIAL).read_text(),
            "labels": evaluation.labels,
            "scores": known,
            "predictions": str(predictions.relative_to(cell.folder)),
            "log": str(log.relative_to(cell.folder)),
            "seconds": round(time.monotonic() - start),
        }
    )
