"""Evaluation of a folder of predictions against its truth."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmf_plugins.errors import DataError, needs
from dmf_plugins.metrics.distance import SurfaceDistances, surface_distances
from dmf_plugins.metrics.labelmaps import LabelMap, find_label_maps, read_label_map
from dmf_plugins.metrics.lesions import LesionCounts, detection_scores, lesion_counts
from dmf_plugins.metrics.segmentation import (
    NAMES,
    Scores,
    accuracy,
    cb_dice,
    class_scores,
    confusion_counts,
    foreground_and_all,
    nanmean,
)
from dmf_plugins.progress import track

PER_IMAGE = "per_image.csv"
DISTANCES = ("hd95", "assd")  # in a unit
DETECTION = (*LesionCounts._fields, "true_pixels", "predicted_pixels")
PLACE = ("spacing", "origin", "direction")  # of a volume in space
RESAMPLES = 2000
Row = dict[str, dict[str, float]]  # score -> {mean, low, high, n}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of predictions, in [0, 1]; distances in ``unit``.

    Attributes:
        labels: foreground class name -> value.
        per_image: one row per image and class: ``image``, ``class``, the overlap scores, ``hd95``,
            ``assd``, ``surface_dice``, ``lesions``, ``lesions_found``, ``false_lesions``,
            ``true_pixels``, ``predicted_pixels``.
        summary: ``lesion``, ``paper`` and each class -> score -> ``{mean, low, high, n}`` with a
            bootstrap 95 % interval over the ``n`` images that have the score, NaN for fewer than two.
            ``lesions_found`` to ``false_alarm_pixels``: the mean of :func:`detection_scores`.
        unit: ``pixels`` or ``mm``.
    """

    labels: dict[str, int]
    per_image: pd.DataFrame
    summary: dict[str, Row]
    unit: str


def evaluate_folders(
    predictions: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    labels: Mapping[str, int],
    *,
    ignore_index: int | None = None,
    distances: bool = True,
    tolerance: float = 1.0,
    partial: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Compare every label map of ``truth`` with the prediction of the same name.

    Args:
        predictions, truth: folders of PNG or NIfTI label maps; suffixes may differ.
        labels: foreground class name -> value; 0 is the background.
        ignore_index: label of the truth's pixels left out.
        distances: also HD95, ASSD and surface Dice, which take most of the time.
        tolerance: of surface Dice, in pixels or, for volumes, mm.
        partial: score what is predicted, though some of ``truth`` is not.
        seed: of the bootstrap.
        workers: processes; None for one a core.
        progress: show a progress bar on stderr.

    Raises:
        UsageError: a folder does not exist, or a package is missing.
        DataError: a file has no partner, another size or place in space, or an unknown label; the message
            names it.
    """
    found, wanted = find_label_maps(Path(predictions)), find_label_maps(Path(truth))
    for name in sorted(found.keys() - wanted.keys()):
        raise DataError(f"{found[name]} has no truth in {truth}")
    for name in sorted(wanted.keys() - found.keys()):
        if not partial:
            raise DataError(
                f"{wanted[name]} has no prediction in {predictions}; to score the others alone use "
                "--partial"
            )
    if distances:  # tell at once, not from within a worker
        with needs("evaluate"):
            import surface_distance  # noqa: F401
    allowed = tolerance if distances else None
    jobs = [(found[name], wanted[name], dict(labels), ignore_index, allowed) for name in found]
    workers = min(len(jobs), workers or os.cpu_count() or 1)
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        done = (
            map(_score_image, jobs) if pool is None else pool.map(_score_image, jobs, chunksize=4)
        )
        results = list(track(done, "evaluating", progress, len(jobs)))
    counts = np.stack([result.counts for result in results])
    rows = [row for result in results for row in result.rows]
    units = {result.unit for result in results}
    if len(units) > 1:
        raise DataError(f"{truth} mixes pictures and volumes; evaluate them apart")
    table = pd.DataFrame(rows)
    return Evaluation(dict(labels), table, _summary(table, counts, labels, seed), units.pop())


@dataclass(frozen=True)
class _Image:
    counts: np.ndarray
    rows: list[dict[str, Any]]
    unit: str


def _score_image(job: tuple[Path, Path, dict[str, int], int | None, float | None]) -> _Image:
    pred_path, truth_path, labels, ignore_index, tolerance = job
    pred, truth = read_label_map(pred_path), read_label_map(truth_path)
    _check_same_place(pred, truth, pred_path, truth_path)
    keep = np.ones(truth.labels.shape, bool)
    if ignore_index is not None:
        keep = truth.labels != ignore_index
    # classes are counted by rank, so that values need not follow each other
    p, t = _ranks(pred, pred_path, labels, keep), _ranks(truth, truth_path, labels, keep)
    counts = confusion_counts(p[keep], t[keep], len(labels) + 1)
    scores = class_scores(counts)
    rows = []
    for rank, name in enumerate(labels, start=1):
        row: dict[str, Any] = {"image": truth_path.name, "class": name}
        row |= {score: scores[score][rank] for score in NAMES}
        masks = (p == rank) & keep, (t == rank) & keep
        if tolerance is not None:
            row |= surface_distances(*masks, truth.spacing, tolerance)._asdict()
        row |= lesion_counts(*masks)._asdict()
        row |= {
            "true_pixels": int(counts[rank].sum()),
            "predicted_pixels": int(counts[:, rank].sum()),
        }
        rows.append(row)
    return _Image(counts, rows, truth.unit)


def _check_same_place(pred: LabelMap, truth: LabelMap, pred_path: Path, truth_path: Path) -> None:
    if pred.labels.shape != truth.labels.shape:
        raise DataError(
            f"{pred_path} has shape {pred.labels.shape}, {truth_path} {truth.labels.shape}; predict "
            "at the size of the truth"
        )
    for name in PLACE if pred.unit == truth.unit else ():
        a, b = getattr(pred, name), getattr(truth, name)
        if not np.allclose(a, b, rtol=1e-4, atol=1e-3):  # headers hold single precision
            raise DataError(
                f"{pred_path} has {name} {_numbers(a)}, {truth_path} {_numbers(b)}; write the "
                "prediction with the truth's geometry, or resample it"
            )


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _ranks(found: LabelMap, path: Path, labels: Mapping[str, int], keep: np.ndarray) -> np.ndarray:
    values = [0, *labels.values()]
    unknown = sorted(set(np.unique(found.labels[keep]).tolist()) - set(values))
    if unknown:
        raise DataError(
            f"{path} holds the label {unknown[0]}, but the labels are 0 (background), "
            + ", ".join(f"{value} ({name})" for name, value in labels.items())
        )
    ranks = np.zeros_like(found.labels)
    for rank, value in enumerate(values):
        ranks[found.labels == value] = rank
    return ranks


def _summary(
    table: pd.DataFrame, counts: np.ndarray, labels: Mapping[str, int], seed: int
) -> dict[str, Row]:
    names = [name for name in (*NAMES, *SurfaceDistances._fields) if name in table]
    # [images, classes] of every score, in the order of the images
    by_class, numbers = (
        {n: table[n].to_numpy(float).reshape(len(counts), len(labels)) for n in wanted}
        for wanted in (names, DETECTION)
    )

    def interval(
        statistic: Callable[[np.ndarray], Scores], number: int = len(counts)
    ) -> dict[str, float]:
        return bootstrap_interval(statistic, number, seed) | {"n": number}

    def of_images(values: Scores) -> dict[str, float]:
        seen = values[~np.isnan(values)]  # the others have no score to average or to draw
        return interval(lambda index: seen[index].mean(-1), len(seen))

    def pooled(index: np.ndarray) -> np.ndarray:
        return counts[index].sum(axis=-3)

    lesion = {name: of_images(nanmean(values, -1)) for name, values in by_class.items()}
    lesion["accuracy"] = of_images(accuracy(counts))
    lesion["cb_dice"] = of_images(cb_dice(counts))

    def detection(*columns: Scores) -> Row:
        scores = detection_scores(np.stack(columns[:3], -1), *columns[3:])
        return {name: of_images(values) for name, values in scores.items()}

    lesion |= detection(*(values.sum(-1) for values in numbers.values()))

    def paper_mean(name: str) -> Callable[[np.ndarray], Scores]:
        return lambda index: foreground_and_all(class_scores(pooled(index))[name])[1]

    paper = {name: interval(paper_mean(name)) for name in NAMES}
    paper["accuracy"] = interval(lambda index: accuracy(pooled(index)))
    paper["cb_dice"] = interval(lambda index: cb_dice(pooled(index)))
    summary = {"lesion": lesion, "paper": paper}
    for rank, name in enumerate(labels):
        key = name if name not in summary else f"class {name}"
        if len(labels) > 1:
            summary[key] = {n: of_images(values[:, rank]) for n, values in by_class.items()}
            summary[key] |= detection(*(values[:, rank] for values in numbers.values()))
    return summary


def bootstrap_interval(
    statistic: Callable[[np.ndarray], Scores], number: int, seed: int
) -> dict[str, float]:
    """Value on all images and its percentile bootstrap 95 % interval, NaN where there is none.

    Args:
        statistic: maps image numbers ``[..., images]`` to values ``[...]``.
        number: images.
        seed: of the resampling.
    """
    everyone = np.arange(number)
    value = float(statistic(everyone)) if number else float("nan")
    if number < 2 or np.isnan(value):
        return {"mean": value, "low": float("nan"), "high": float("nan")}
    with needs("evaluate"):
        from scipy.stats import bootstrap
    result = bootstrap(
        (everyone,),
        lambda index, axis=-1: statistic(index),
        n_resamples=RESAMPLES,
        batch=200,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return {"mean": value, "low": float(low), "high": float(high)}
