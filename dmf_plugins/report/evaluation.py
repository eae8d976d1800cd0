"""Evaluations and comparisons to read: tables, files, a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from dmf_plugins.atomic import building
from dmf_plugins.metrics.evaluate import DISTANCES, PER_IMAGE, Evaluation, Row
from dmf_plugins.metrics.lesions import COUNTED

_CONVENTIONS = (
    "lesion: foreground classes, per image, mean over images; the convention of the field.",
    "paper: all classes with background, counts pooled over the images; as the DMF paper reports.",
)
_EMPTY_RULE = (
    "A class in neither truth nor prediction of an image is undefined there and left out; in one of "
    "them only, it scores 0. Distances need it in both, and leave out images where it is missing."
)
_DETECTION = {
    "lesions_found": "lesions found",
    "false_lesions": "false lesions per image",
    "false_alarms": "images without a lesion: false alarms",
    "false_alarm_pixels": "mean pixels there",
}
_DETECTION_RULE = (
    "A lesion is a connected component of the truth, found when a prediction touches it (share per "
    "image that has one); a predicted component that touches none is a false lesion."
)
_PLOTTED = ("dice", "iou", "precision", "recall")


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Summary as a table, overlap in percent, distances in their unit."""
    summary = evaluation.summary
    names = dict.fromkeys(
        name for row in summary.values() for name in row if name not in _DETECTION
    )
    lines = _table(summary, {n: f"{n} ({evaluation.unit})" if n in DISTANCES else n for n in names})
    detected = {name: row for name, row in summary.items() if name != "paper"}
    known = [name for name in _DETECTION if any(row[name]["n"] for row in detected.values())]
    lines += ["", *_table(detected, {n: _DETECTION[n] for n in known}), "", _DETECTION_RULE]
    images = evaluation.per_image["image"].nunique()
    note = f"Overlap in percent, over {images} images, with bootstrap 95 % intervals. {_EMPTY_RULE}"
    return "\n".join([*lines, "", *_CONVENTIONS, note]) + "\n"


def _table(summary: Mapping[str, Row], heads: Mapping[str, str]) -> list[str]:
    """One line per row of the summary, one column per score in ``heads``."""
    counted = (*DISTANCES, *COUNTED)  # the others are shares
    lines = [f"| | {' | '.join(heads.values())} |", "|---" * (len(heads) + 1) + "|"]
    for row, scores in summary.items():
        cells = [_cell(scores.get(name), 1 if name in counted else 100) for name in heads]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def write_evaluation(
    evaluation: Evaluation, folder: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Write ``per_image.csv``, ``summary.json``, ``summary.md`` and ``per_image.png``, all or nothing.

    Raises:
        UsageError: ``folder`` exists and ``overwrite`` is off, holds something else, or cannot be
            written.
    """
    with building(Path(folder), "evaluate", overwrite) as partial:
        evaluation.per_image.to_csv(
            partial / PER_IMAGE,
            index=False,
            float_format="%.6g",
            errors="backslashreplace",  # a file name need not be text
        )
        content = {
            "labels": evaluation.labels,
            "unit": evaluation.unit,
            "scores": evaluation.summary,
        }
        text = json.dumps(_plain(content), indent=2, allow_nan=False)
        (partial / "summary.json").write_text(text + "\n", encoding="utf-8")
        (partial / "summary.md").write_text(evaluation_markdown(evaluation), encoding="utf-8")
        plot_scores(evaluation.per_image, partial / "per_image.png")


def comparison_markdown(table: pd.DataFrame, score: str) -> str:
    """The result of ``compare_runs`` as a table, scores in percent.

    With ``detectable``, of trials, the table says what could have been shown at 80 % power.
    """
    power = "detectable" in table
    lines = [
        f"| a | b | images | {score} a | {score} b | a - b (95 %) | p | p (Holm) |"
        + " could show |" * power,
        "|---|---|---|---|---|---|---|---|" + "---|" * power,
    ]
    for row in table.to_dict("records"):
        low, mean, high = (f"{100 * row[key]:+.2f}" for key in ("low", "difference", "high"))
        interval = "" if np.isnan(row["low"]) else f" ({low}, {high})"
        shown = "" if np.isnan(row.get("detectable", np.nan)) else f"{100 * row['detectable']:.2f}"
        lines.append(
            f"| {row['a']} | {row['b']} | {row['images']} | {100 * row['mean_a']:.2f} "
            f"| {100 * row['mean_b']:.2f} | {mean}{interval} | {row['p']:.3g} "
            f"| {row['p_holm']:.3g} |" + f" {shown} |" * power
        )
    return "\n".join(lines) + "\n"


def plot_scores(per_image: pd.DataFrame, output: Path) -> None:
    """Box plots of the overlap scores of each class over the images, with every image a dot."""
    classes = list(per_image["class"].unique())
    with style.context("default"):
        figure = Figure(figsize=(2.2 + 2.6 * len(classes), 4), layout="constrained")
        panels = figure.subplots(1, len(classes), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, classes, strict=True):
            rows = per_image[per_image["class"] == name]
            values = [rows[score].dropna().to_numpy() for score in _PLOTTED]
            axes.boxplot(values, showfliers=False, widths=0.6)
            axes.set_xticks(range(1, len(_PLOTTED) + 1), _PLOTTED, rotation=30)
            for position, column in enumerate(values, start=1):
                # deterministic jitter, so that equal input draws the same picture
                shift = (0.618 * np.arange(len(column))) % 1 * 0.4 - 0.2
                axes.plot(position + shift, column, ".", alpha=0.35, markersize=5)
            axes.set(title=f"{name}, {len(rows)} images", ylim=(-0.02, 1.02))
        figure.savefig(output, dpi=100)


def _cell(score: Mapping[str, float] | None, factor: int) -> str:
    if score is None or np.isnan(score["mean"]):
        return ""
    digits = 1 if factor == 100 else 2
    mean, low, high = (f"{factor * score[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return mean if np.isnan(score["low"]) else f"{mean} ({low}, {high})"


def _plain(content: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return None if isinstance(content, float) and np.isnan(content) else content
