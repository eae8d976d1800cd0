"""Curves of weights, terms and gamma over training (the paper's figures 4 and 5)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmf_plugins.report.log import read_log

_POINTS = 1500  # more than the picture has pixels


def term_names(log: pd.DataFrame) -> list[str]:
    """Names of the base terms in a log, in order."""
    return [c.removeprefix("weight_") for c in log.columns if c.startswith("weight_")]


def plot_weights(axes: Axes, log: pd.DataFrame) -> None:
    """Weight of every term against the step (figure 4)."""
    thin = _thin(log)
    for name in term_names(log):
        axes.plot(thin["step"], thin[f"weight_{name}"], label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel="weight", ylim=(0, 1))
    axes.legend(loc="upper right", ncols=4, frameon=False)


def plot_terms(axes: Axes, log: pd.DataFrame) -> None:
    """Value of every term against the step, with its running mean (figure 5)."""
    window = max(1, len(log) // 50)
    for name in term_names(log):
        values = log[f"value_{name}"]
        thin, smooth = _thin(log), values.rolling(window, min_periods=1).mean()
        (line,) = axes.plot(thin["step"], values.loc[thin.index], alpha=0.25, linewidth=0.8)
        axes.plot(thin["step"], smooth.loc[thin.index], label=name, color=line.get_color())
    if log["auxiliary"].notna().any():
        thin, smooth = _thin(log), log["auxiliary"].rolling(window, min_periods=1).mean()
        axes.plot(thin["step"], smooth.loc[thin.index], "k--", linewidth=1, label="auxiliary")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(loc="upper right", ncols=4, frameon=False)


def plot_dynamics(log_path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Draw weights, terms and gamma of a ``dmf_log.csv`` into a PNG (or any suffix matplotlib knows)."""
    log = read_log(log_path)
    # nnU-Net enlarges every font of the process for its own progress.png
    with style.context("default"):
        _draw(log, Path(output))


def plot_dynamics_grid(
    logs: Mapping[str, pd.DataFrame], kind: Literal["weights", "terms"], output: Path
) -> None:
    """One panel a log: the paper's figure 4 (``weights``) or 5 (``terms``), a row a setting.

    Args:
        logs: title -> log.
        kind: which curves.
        output: picture; the suffix decides the format.
    """
    draw = plot_weights if kind == "weights" else plot_terms
    with style.context("default"):
        figure = Figure(figsize=(9, 1.9 * len(logs) + 0.4), layout="constrained")
        panels = figure.subplots(len(logs), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, log) in zip(panels, logs.items(), strict=True):
            draw(axes, log)
            axes.set_title(title, fontsize=9, loc="left")
            axes.label_outer()
        save_figure(figure, output)


def _draw(log: pd.DataFrame, output: Path) -> None:
    figure = Figure(figsize=(10, 9), layout="constrained")
    weights, terms, gamma = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.3])
    plot_weights(weights, log)
    plot_terms(terms, log)
    thin = _thin(log)
    gamma.plot(thin["step"], thin["gamma"], color="k", linewidth=1.2)
    gamma.set(xlabel="step", ylabel="gamma", ylim=(0, 1.1 * log["gamma"].max() or 1))
    last = int(log["epoch"].iloc[-1])
    weights.set_title(f"Dynamic Memory Fusion, {len(log)} steps, epoch {last}")
    save_figure(figure, output)


def save_figure(figure: Figure, output: Path) -> None:
    """Write a picture, whole or not at all; the suffix decides the format.

    What is drawn alike gives the same file: an SVG has neither random names nor a date.
    """
    partial = output.with_name(f".{output.stem}.partial{output.suffix}")
    metadata = {"Date": None} if output.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": output.name}):
        figure.savefig(partial, dpi=100, metadata=metadata)
    os.replace(partial, output)


def _thin(log: pd.DataFrame) -> pd.DataFrame:
    rows = np.unique(np.linspace(0, len(log) - 1, min(len(log), _POINTS)).round().astype(int))
    return log.iloc[rows]
