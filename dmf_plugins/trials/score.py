"""The end of a cell, whatever trained it: its predictions scored, its result written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from dmf_plugins.metrics.evaluate import PER_IMAGE, evaluate_folders
from dmf_plugins.trials.engine import Cell

INITIAL = "initial_weights.txt"  # digest of the network a training began with


def finish(
    cell: Cell,
    truth: Path,
    labels: Mapping[str, int],
    *,
    predictions: Path,
    log: Path,
    ignore_index: int | None,
    start: float,
) -> None:
    """Score what was predicted, and write the result.

    Args:
        cell: the training.
        truth: folder of label maps, of which some may not be predicted.
        labels: class -> value of those to score.
        predictions: folder in the cell's.
        log: of weights and terms, where there is one.
        ignore_index: label of the truth to leave out.
        start: of the run that finished it, by ``time.monotonic``.
    """
    evaluation = evaluate_folders(
        predictions, truth, labels, ignore_index=ignore_index, partial=True, workers=1
    )
    evaluation.per_image.to_csv(cell.folder / PER_IMAGE, index=False, float_format="%.6g")
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
