"""Paired tests between evaluated runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from dmf_plugins.errors import DataError, UsageError, needs
from dmf_plugins.metrics.evaluate import PER_IMAGE, bootstrap_interval
from dmf_plugins.metrics.segmentation import NAMES

SCORES = (*NAMES, "surface_dice")


def compare_runs(
    runs: Sequence[str | os.PathLike[str]],
    score: str = "dice",
    *,
    reference: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Wilcoxon signed-rank test of every pair of runs on the same images, Holm-corrected.

    The score of an image is its mean over the foreground classes that are in its truth or prediction,
    as ``dmf evaluate`` has it. An image with none in either counts as 1, so that a false alarm of the
    other run is not lost; one without a score in either run is left out.

    Args:
        runs: folders written by ``dmf evaluate``, or their ``per_image.csv``.
        score: ``dice``, ``iou``, ``precision``, ``recall``, ``f1`` or ``surface_dice``.
        reference: compare every run with this one alone.
        seed: of the bootstrap of the difference.

    Returns:
        One row per pair: ``a``, ``b``, ``images``, ``units`` (images, or groups of them), ``mean_a``,
        ``mean_b``, ``difference`` (a - b) with ``low`` and ``high`` of its bootstrap 95 % interval,
        ``p`` and ``p_holm``.

    Raises:
        UsageError: fewer than two runs, or an unknown score.
        DataError: a run is no report, or two runs hold different images.
    """
    if score not in SCORES:
        raise UsageError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    paths = list(dict.fromkeys(map(Path, runs)))
    pairs = list(combinations(paths, 2))
    if reference is not None:
        pairs = [(path, Path(reference)) for path in paths if path != Path(reference)]
    if not pairs:
        raise UsageError("give at least two different runs to compare")
    scores = {path: image_scores(path, score) for pair in pairs for path in pair}
    names = _short_names(list(scores))
    return compare_scores(
        [((names[a], scores[a]), (names[b], scores[b])) for a, b in pairs], seed=seed
    )


def compare_scores(
    pairs: Sequence[tuple[tuple[str, pd.Series], tuple[str, pd.Series]]],
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """As :func:`compare_runs`, from named scores indexed by image.

    Images of one of ``groups`` (image -> group; an image without one is its own) are resampled
    together, and enter the test as their mean.

    Raises:
        DataError: the two sides of a pair hold different images, or no image both have a score of.
    """
    rows = []
    for (first, a), (second, b) in pairs:
        for image in sorted(set(a.index) ^ set(b.index)):
            raise DataError(f"{first} and {second} hold different images, such as {image}")
        both = pd.DataFrame({"a": a, "b": b}).dropna()  # what is not found has no precision
        if both.empty:
            raise DataError(f"{first} and {second} have no image with a score in both")
        own = [f"group {groups[i]}" if groups and i in groups else f"image {i}" for i in both.index]
        units = (both["a"] - both["b"]).groupby(own).agg(["sum", "size", "mean"])
        statistic = partial(_mean_of, units["sum"].to_numpy(), units["size"].to_numpy())
        spread = bootstrap_interval(statistic, len(units), seed)
        rows.append(
            {
                "a": first,
                "b": second,
                "images": len(both),
                "units": len(units),
                "mean_a": both["a"].mean(),
                "mean_b": both["b"].mean(),
                "difference": spread["mean"],
                "low": spread["low"],
                "high": spread["high"],
                "p": wilcoxon_p(units["mean"].to_numpy()),
            }
        )
    table = pd.DataFrame(rows)
    with needs("evaluate"):
        from statsmodels.stats.multitest import multipletests
    table["p_holm"] = multipletests(table["p"], method="holm")[1]
    return table


def _mean_of(sums: np.ndarray, sizes: np.ndarray, index: np.ndarray) -> np.ndarray:
    return sums[index].sum(axis=-1) / sizes[index].sum(axis=-1)


def image_scores(run: Path, score: str = "dice") -> pd.Series:
    """Score of each image of a run: mean over its classes, 1 where none is and none was found."""
    path = run / PER_IMAGE if run.is_dir() else run
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; write it with: dmf evaluate PRED GT --output {run}"
        )
    try:
        table = pd.read_csv(path, dtype={"image": str})
        empty = (table["true_pixels"] == 0) & (table["predicted_pixels"] == 0)
        means = table[score].where(~empty).groupby(table["image"]).mean()
        return means.where(~empty.groupby(table["image"]).all(), 1.0)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is no report of dmf evaluate ({error})") from error


def wilcoxon_p(difference: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    difference = np.round(difference, 9)  # equal ones rank alike, whatever their last bit
    return float(wilcoxon(difference).pvalue) if difference.any() else 1.0


def _short_names(paths: list[Path]) -> dict[Path, str]:
    """Names that differ, from as few trailing parts of the paths as it takes."""
    plain = {p: (p.parent if p.name == PER_IMAGE else p).resolve() for p in paths}
    for count in range(1, max(len(p.parts) for p in plain.values()) + 1):
        names = {path: "/".join(full.parts[-count:]) for path, full in plain.items()}
        if len(set(names.values())) == len(names):
            return names
    raise UsageError("the same run is given twice")
