"""Images beside their truth and the predictions of several models (the paper's figures 1 to 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dmf_plugins.report.dynamics import save_figure

_PICTURES = ("image", "filtered")


def plot_samples(
    columns: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], output: Path
) -> None:
    """One row per sample, one lettered column per entry of ``columns``.

    Args:
        columns: title -> ``[H, W]`` array of each sample; ``image`` and ``filtered`` are grey values,
            all others labels.
        names: name of each sample.
        output: picture; the suffix decides the format.
    """
    figure = Figure(figsize=(1.7 * len(columns), 1.75 * len(names) + 0.5), layout="constrained")
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    for j, (title, samples) in enumerate(columns.items()):
        for i, sample in enumerate(samples):
            top = 255 if title in _PICTURES else max(1, int(np.max(sample)))
            grid[i, j].imshow(sample, cmap="gray", vmin=0, vmax=top, aspect="auto")
            grid[i, j].set_xticks([])
            grid[i, j].set_yticks([])
        grid[0, j].set_title(f"({chr(ord('a') + j)}) {title}", fontsize=8)
    for row, name in zip(grid, names, strict=True):
        row[0].set_ylabel(name, fontsize=7)
    save_figure(figure, output)
