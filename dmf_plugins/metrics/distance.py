"""Distances between the surfaces of two masks, by DeepMind's surface-distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dmf_plugins.errors import needs


class SurfaceDistances(NamedTuple):
    """In the unit of the spacing; NaN where one of the masks is empty.

    Surface Dice is a share, 0 where one mask alone is empty.
    """

    hd95: float
    assd: float
    surface_dice: float


def surface_distances(
    pred: ArrayLike,
    target: ArrayLike,
    spacing: Sequence[float] | None = None,
    tolerance: float = 1.0,
) -> SurfaceDistances:
    """95th percentile Hausdorff distance, average symmetric surface distance, surface Dice.

    S. Nikolov et al., "Clinically applicable segmentation of head and neck anatomy for radiotherapy",
    J Med Internet Res 23(7), 2021: distances between surface elements, weighted by their size, so
    that the result does not depend on how finely a border happens to be cut. HD95 is the larger of
    the two directed percentiles, ASSD the mean over both surfaces, surface Dice the share of both
    surfaces that is no further than ``tolerance`` from the other.

    Args:
        pred, target: masks ``[H, W]`` or ``[D, H, W]``; non-zero is inside.
        spacing: size of a pixel along each axis; None for 1.
        tolerance: of surface Dice, in the unit of the spacing.

    Raises:
        ValueError: shapes differ.
        UsageError: the package surface-distance is not installed.
    """
    with needs("evaluate"):
        import surface_distance

    p, t = np.asarray(pred) != 0, np.asarray(target) != 0
    if p.shape != t.shape:
        raise ValueError(f"pred has shape {p.shape}, target {t.shape}; they must be equal")
    if not p.any() or not t.any():
        nan = float("nan")
        return SurfaceDistances(nan, nan, 0.0 if p.any() or t.any() else nan)
    sides = (1.0,) * p.ndim if spacing is None else tuple(spacing)
    found = surface_distance.compute_surface_distances(t, p, sides)
    forth, back = found["distances_gt_to_pred"], found["distances_pred_to_gt"]
    sizes = found["surfel_areas_gt"], found["surfel_areas_pred"]
    hd95 = surface_distance.compute_robust_hausdorff(found, 95)
    assd = (forth @ sizes[0] + back @ sizes[1]) / (sizes[0].sum() + sizes[1].sum())
    near = surface_distance.compute_surface_dice_at_tolerance(found, tolerance)
    return SurfaceDistances(float(hd95), float(assd), float(near))
