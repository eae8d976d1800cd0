"""Seeded, stratified splits that keep groups of duplicates together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def split_cases(
    strata: Sequence[Hashable],
    groups: Sequence[Hashable],
    fractions: Sequence[float] = (0.70, 0.15, 0.15),
    seed: int = 0,
) -> list[int]:
    """Assign every case to a part.

    Groups are dealt out whole, the large ones first, each to the part whose class counts it brings
    closest to their targets; the last ones to the parts that would otherwise stay empty.

    Args:
        strata: class of each case.
        groups: group of each case; cases of one group end in one part.
        fractions: size of each part; normalised to sum 1.
        seed: of the shuffle that decides among equals.

    Returns:
        The part (0, 1, ...) of each case.

    Raises:
        ValueError: lengths differ, a fraction is negative, or there are more parts of positive size
            than groups.

    Examples:
        >>> parts = split_cases(["benign"] * 60 + ["malignant"] * 40, range(100), seed=0)
        >>> [parts.count(part) for part in range(3)]
        [70, 15, 15]
    """
    if len(strata) != len(groups):
        raise ValueError(f"{len(strata)} strata but {len(groups)} groups; one of each per case")
    share = np.asarray(fractions, dtype=float)
    if share.ndim != 1 or (share < 0).any() or share.sum() <= 0:
        raise ValueError(f"fractions must not be negative or all zero, got {list(fractions)}")
    share = share / share.sum()

    classes = {name: i for i, name in enumerate(dict.fromkeys(strata))}
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    content = np.zeros((len(members), len(classes)))
    for row, indices in zip(content, members.values(), strict=True):
        for index in indices:
            row[classes[strata[index]]] += 1

    dealt = _deal(content, share, np.random.default_rng(seed))
    parts = [-1] * len(strata)
    for part, indices in zip(dealt, members.values(), strict=True):
        for index in indices:
            parts[index] = part
    for part in range(len(share)):
        if share[part] > 0 and part not in parts:
            raise ValueError(
                f"part {part} ({share[part]:.0%}) stays empty: {len(strata)} cases in {len(members)} "
                "groups are too few to split"
            )
    return parts


def _deal(
    content: NDArray[np.float64], share: NDArray[np.float64], rng: np.random.Generator
) -> list[int]:
    """Part of every group, from ``content``, its number of cases of each class."""
    total = content.sum(axis=0)
    target = share[:, None] * total
    filled = np.zeros_like(target)
    dealt = [-1] * len(content)
    empty = share > 0
    shuffled = rng.permutation(len(content))
    order = shuffled[np.argsort(-content[shuffled].sum(axis=1), kind="stable")]
    for done, g in enumerate(order):
        allowed = empty if len(order) - done <= empty.sum() else share > 0
        after = filled + content[g] - target
        cost = ((after**2 - (filled - target) ** 2) / total).sum(axis=1)
        cost[~allowed] = np.inf
        dealt[g] = int(cost.argmin())
        filled[dealt[g]] += content[g]
        empty[dealt[g]] = False
    return dealt
