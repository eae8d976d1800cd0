"""Hard overlap metrics (Eq. 11-15, 24) from label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Aggregate = Literal["dataset", "image"]
Scores = NDArray[np.float64]
NAMES = ("dice", "iou", "precision", "recall", "f1")


@dataclass(frozen=True)
class SegmentationMetrics:
    """Scores in [0, 1]; NaN where a score is undefined.

    Attributes:
        per_class: name -> ``[num_classes]``, for ``dice``, ``iou``, ``precision``, ``recall``, ``f1``.
        foreground: name -> mean over classes 1.., the convention of the field.
        all_classes: name -> mean over all classes including background, as the DMF paper reports.
        accuracy: share of correct labelled pixels.
        cb_dice: class-balanced Dice (Eq. 24), weights from the pixels counted.
    """

    per_class: dict[str, Scores]
    foreground: dict[str, float]
    all_classes: dict[str, float]
    accuracy: float
    cb_dice: float

    @property
    def lesion(self) -> dict[str, float]:
        """Another name of :attr:`foreground`, however the images were aggregated."""
        return self.foreground

    @property
    def paper(self) -> dict[str, float]:
        """Another name of :attr:`all_classes`, however the images were aggregated."""
        return self.all_classes


def confusion_counts(
    pred: ArrayLike, target: ArrayLike, num_classes: int, ignore_index: int | None = None
) -> NDArray[np.int64]:
    """Confusion matrix ``[num_classes, num_classes]``: rows truth, columns prediction.

    Raises:
        ValueError: shapes differ or a label lies outside ``0..num_classes-1`` and is not ignored.
    """
    p, t = np.asarray(pred), np.asarray(target)
    if p.shape != t.shape:
        raise ValueError(f"pred has shape {p.shape}, target {t.shape}; they must be equal")
    keep = np.ones(t.shape, bool) if ignore_index is None else t != ignore_index
    p, t = p[keep].astype(np.int64), t[keep].astype(np.int64)
    for name, labels in (("pred", p), ("target", t)):
        if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(
                f"{name} holds labels {labels.min()}..{labels.max()}, expected 0..{num_classes - 1}"
            )
    return np.bincount(t * num_classes + p, minlength=num_classes**2).reshape(
        num_classes, num_classes
    )


def segmentation_metrics(
    pred: ArrayLike,
    target: ArrayLike,
    num_classes: int,
    ignore_index: int | None = None,
    aggregate: Aggregate = "dataset",
) -> SegmentationMetrics:
    """Compare predicted and true label maps.

    A class absent from both truth and prediction scores NaN and is left out of means: an image
    without a lesion that is predicted empty neither helps nor hurts. Absent from the truth but
    predicted, it scores 0.

    Args:
        pred, target: whole-number label maps ``[N, *spatial]`` (or one ``[*spatial]`` map).
        num_classes: classes including background 0.
        ignore_index: label of the target pixels left out.
        aggregate: ``dataset`` pools the counts of all images; ``image`` scores every image
            ``pred[i]`` and averages over images, so ``pred`` needs the leading axis.

    Raises:
        ValueError: shapes differ, a label is out of range, or ``aggregate`` is unknown.
    """
    if aggregate == "dataset":
        counts = [confusion_counts(pred, target, num_classes, ignore_index)]
    elif aggregate == "image":
        pairs = zip(np.asarray(pred), np.asarray(target), strict=True)
        counts = [confusion_counts(p, t, num_classes, ignore_index) for p, t in pairs]
    else:
        raise ValueError(f"aggregate must be 'dataset' or 'image', got {aggregate!r}")
    return metrics_from_counts(counts)


def metrics_from_counts(counts: Sequence[NDArray[np.int64]]) -> SegmentationMetrics:
    """Mean scores over confusion matrices, one an image (or one for a whole data set).

    Args:
        counts: matrices ``[num_classes, num_classes]`` from :func:`confusion_counts`.
    """
    stacked = np.stack(counts)
    scores = class_scores(stacked)
    means = {name: foreground_and_all(values) for name, values in scores.items()}
    return SegmentationMetrics(
        per_class={name: nanmean(values, 0) for name, values in scores.items()},
        foreground={name: float(nanmean(values, 0)) for name, (values, _) in means.items()},
        all_classes={name: float(nanmean(values, 0)) for name, (_, values) in means.items()},
        accuracy=float(nanmean(accuracy(stacked), 0)),
        cb_dice=float(nanmean(cb_dice(stacked), 0)),
    )


def class_scores(counts: NDArray[np.integer]) -> dict[str, Scores]:
    """Dice, IoU, precision, recall and F1 (Eq. 11-15) of each class.

    Args:
        counts: confusion matrices ``[..., K, K]``, rows truth, columns prediction.

    Returns:
        name -> ``[..., K]`` in [0, 1]; NaN for a class in neither truth nor prediction.
    """
    hits, true, predicted = _margins(counts)
    occurs = true + predicted > 0
    precision, recall = (
        np.where(occurs, hits / np.maximum(total, 1), np.nan) for total in (predicted, true)
    )
    return {
        "dice": np.where(occurs, 2 * hits / np.maximum(true + predicted, 1), np.nan),
        "iou": np.where(occurs, hits / np.maximum(true + predicted - hits, 1), np.nan),
        "precision": precision,
        "recall": recall,
        "f1": np.where(
            occurs, 2 * precision * recall / np.maximum(precision + recall, 1e-300), np.nan
        ),
    }


def accuracy(counts: NDArray[np.integer]) -> Scores:
    """Share of correct pixels, ``[..., K, K] -> [...]``; NaN without pixels."""
    hits, true, _ = _margins(counts)
    pixels = true.sum(axis=-1)
    return np.where(pixels > 0, hits.sum(axis=-1) / np.maximum(pixels, 1), np.nan)


def cb_dice(counts: NDArray[np.integer]) -> Scores:
    """Class-balanced Dice (Eq. 24), ``[..., K, K] -> [...]``, over the classes of the truth."""
    _, true, _ = _margins(counts)
    inverse = np.where(true > 0, 1 / np.maximum(true, 1), 0.0)
    total = inverse.sum(axis=-1)
    dice = np.nan_to_num(class_scores(counts)["dice"])
    return np.where(total > 0, (inverse * dice).sum(axis=-1) / np.maximum(total, 1e-300), np.nan)


def foreground_and_all(scores: Scores) -> tuple[Scores, Scores]:
    """Mean over classes 1.. and over all classes, ``[..., K] -> [...]`` each."""
    return nanmean(scores[..., 1:], -1), nanmean(scores, -1)


def _margins(counts: NDArray[np.integer]) -> tuple[Scores, Scores, Scores]:
    """Correct, true and predicted pixels of each class, ``[..., K]``."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    return hits, counts.sum(axis=-1).astype(float), counts.sum(axis=-2).astype(float)


def nanmean(values: Scores, axis: int) -> Scores:
    """Mean over what is not NaN; NaN where there is nothing, without a warning."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
