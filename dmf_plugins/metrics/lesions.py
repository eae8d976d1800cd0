"""Lesions found, missed and invented: connected components instead of pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmf_plugins.errors import needs

COUNTED = ("false_lesions", "false_alarm_pixels")  # of detection_scores; the others are shares


class LesionCounts(NamedTuple):
    """Connected components of one image and class."""

    lesions: int
    lesions_found: int
    false_lesions: int


def lesion_counts(pred: ArrayLike, target: ArrayLike) -> LesionCounts:
    """Components of the truth, those a prediction touches, and predicted ones that touch no truth.

    Pixels that share an edge or a corner belong together. One shared pixel counts as found, as in
    S. Gatidis et al., "A whole-body FDG-PET/CT dataset with manually annotated tumor lesions",
    Scientific Data 9, 601, 2022 (autoPET): how well a lesion is outlined, Dice says.

    Args:
        pred, target: masks of one shape; non-zero is inside.

    Raises:
        ValueError: shapes differ.
        UsageError: scipy is not installed.
    """
    with needs("evaluate"):
        from scipy.ndimage import label

    p, t = np.asarray(pred) != 0, np.asarray(target) != 0
    if p.shape != t.shape:
        raise ValueError(f"pred has shape {p.shape}, target {t.shape}; they must be equal")
    touching = np.ones((3,) * p.ndim)
    (true, lesions), (predicted, proposed) = label(t, touching), label(p, touching)
    found, hits = (len(np.unique(parts[p & t])) for parts in (true, predicted))
    return LesionCounts(lesions, found, proposed - hits)


def detection_scores(
    counts: NDArray[Any], true: NDArray[Any], predicted: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """What a reader asks of a detector, of each image; NaN where it does not apply.

    Args:
        counts: :class:`LesionCounts` of each image, ``[images, 3]``.
        true, predicted: foreground pixels of each image, ``[images]``.

    Returns:
        name -> ``[images]``. ``lesions_found``: share of the image's lesions that a prediction
        touches. ``false_lesions``: number of predicted ones that touch none. Of images without a
        lesion: ``false_alarms``, 1 where one is predicted, and ``false_alarm_pixels``, its size.
    """
    lesions, found, false = np.asarray(counts, float).reshape(-1, 3).T
    predicted = np.where(true == 0, predicted, np.nan)
    return {
        "lesions_found": np.where(lesions > 0, found / np.maximum(lesions, 1), np.nan),
        "false_lesions": false,
        "false_alarms": np.where(true == 0, predicted > 0, np.nan),
        "false_alarm_pixels": predicted,
    }
