"""Tables, tests and figures of a grid, from the results of its finished cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dmf_plugins.data import READERS
from dmf_plugins.data.images import decode_gray
from dmf_plugins.data.source import Source
from dmf_plugins.errors import DataError
from dmf_plugins.grid.plan import BASELINE, GridPlan
from dmf_plugins.metrics.compare import image_scores
from dmf_plugins.report.dynamics import plot_dynamics_grid
from dmf_plugins.report.evaluation import comparison_markdown
from dmf_plugins.report.log import read_log
from dmf_plugins.report.samples import plot_samples
from dmf_plugins.report.tables import best_in_bold, mean_and_std, table_latex, table_markdown
from dmf_plugins.trials.engine import Cell
from dmf_plugins.trials.report import (
    BEYOND_OVERLAP,
    SMALLER_IS_BETTER,
    check_alike,
    compare_cells,
    read_groups,
)

COLUMNS = {
    "dice": "Dice",
    "iou": "IoU",
    "f1": "F1-score",
    "precision": "Precision",
    "recall": "Recall",
}
BEYOND = {"hd95": "HD95 (pixels)", **BEYOND_OVERLAP}  # of the lesion alone
TITLES = {
    "paper": "As the paper reports: mean over background and lesion, pixels pooled over the test part",
    "lesion": "Lesion alone: per image, mean over images",
}
_SAMPLES = 4
_AUXILIARIES = ("tversky", "focal", "cb_dice", "none")


def write_report(plan: GridPlan) -> list[Path]:
    """Write tables, tests and figures of what is finished into the grid's folder.

    Returns:
        The files written: ``results.csv``, ``tables.md``, ``tables.tex``, ``comparison.csv``,
        ``weights.*``, ``terms.*`` and ``samples.*`` as PNG and SVG.

    Raises:
        DataError: no cell has finished, or cells of one seed began from different networks.
    """
    done = [cell for cell in plan.cells() if cell.finished]
    if not done:
        raise DataError(f"no cell of {plan.output} has finished yet")
    results = _results(done)
    check_alike(done)
    files = {plan.output / "results.csv": results.to_csv(index=False, float_format="%.6g")}
    comparison = _comparison(plan, done)
    text = [_headline(plan, results)]
    latex = []
    for convention, title in TITLES.items():
        names = {f"{convention}_{key}": column for key, column in COLUMNS.items()}
        names |= {"cb_dice": "CB-Dice"} if convention == "paper" else BEYOND
        table = best_in_bold(
            mean_and_std(
                results,
                ["auxiliary", "weighting", "setting"],
                {key: column for key, column in names.items() if key in results},
            ),
            smaller_is_better=[BEYOND["hd95"], *SMALLER_IS_BETTER],
        )
        text += [f"## {title}", table_markdown(table)]
        latex.append(table_latex(table, title))
    if not comparison.empty:
        text += [
            f"## Against {BASELINE}: lesion Dice per test image, averaged over seeds (Wilcoxon)",
            comparison_markdown(comparison, "dice"),
        ]
        files[plan.output / "comparison.csv"] = comparison.to_csv(index=False, float_format="%.6g")
    files[plan.output / "tables.md"] = "\n".join(text)
    files[plan.output / "tables.tex"] = "\n".join(latex)
    for path, content in files.items():
        path.write_text(content, encoding="utf-8")
    return [*files, *_figures(plan, done)]


def _results(cells: list[Cell]) -> pd.DataFrame:
    rows = []
    for cell in cells:
        result = cell.result()
        rows.append(
            {
                "auxiliary": _name(cell.options.get("auxiliary", "cb_dice")) or "none",
                "weighting": _name(cell.options.get("weighting", "variance")),
                "setting": cell.setting,
                "seed": cell.seed,
                **result["test"],
                "hd95": result["test_hd95_pixels"],
                "validation_lesion_dice": result["validation_lesion_dice"],
                "initial_weights": result["initial_weights"],
                "seconds": result["seconds"],
            }
        )
    return pd.DataFrame(rows)


def _name(spec: object) -> str | None:
    return str(spec["type"]) if isinstance(spec, Mapping) else None if spec is None else str(spec)


def _headline(plan: GridPlan, results: pd.DataFrame) -> str:
    return (
        f"# {READERS[plan.dataset].title}: {len(results)} trainings, seeds "
        f"{', '.join(map(str, sorted(results['seed'].unique())))}\n\n"
        f"U-Net of {plan.filters} filters, {plan.size}x{plan.size} pixels, {plan.epochs} epochs, "
        f"batches of {plan.batch_size}; test part, percent, mean ± standard deviation over seeds, best "
        "in bold. Cells of a seed share split and initial network; the checkpoint is the best on the "
        "validation part.\n"
    )


def _comparison(plan: GridPlan, cells: list[Cell]) -> pd.DataFrame:
    """Every setting against the baseline on the seeds both have; near duplicates count as one."""
    groups = read_groups(None, plan.data_root(cells[0].seed) / "manifest.csv")
    return compare_cells([(cell, image_scores(cell.folder)) for cell in cells], BASELINE, groups)


def _figures(plan: GridPlan, done: list[Cell]) -> list[Path]:
    seed = done[0].seed
    cells = {cell.setting: cell for cell in done if cell.seed == seed}
    logs = {name: read_log(cell.folder / "dmf_log.csv") for name, cell in cells.items()}
    written = []
    for suffix in ("png", "svg"):
        for kind in ("weights", "terms"):
            path = plan.output / f"{kind}.{suffix}"
            plot_dynamics_grid(logs, kind, path)
            written.append(path)
        path = plan.output / f"samples.{suffix}"
        _draw_samples(plan, cells, seed, path)
        written.append(path)
    return written


def _draw_samples(plan: GridPlan, cells: dict[str, Cell], seed: int, path: Path) -> None:
    """Columns (a) to (h) of the paper's figures 1 to 3, for the rule of the best setting."""
    root = plan.data_root(seed)
    manifest = pd.read_csv(root / "manifest.csv")
    test = manifest[manifest["split"] == "test"]
    rows = test.iloc[np.linspace(0, len(test) - 1, min(_SAMPLES, len(test))).astype(int)]
    best = max(cells.values(), key=lambda cell: cell.result()["test"]["cb_dice"])
    rule = _name(best.options.get("weighting", "variance"))
    shown = {f"{rule}, {a}": f"{rule}+{a}" for a in _AUXILIARIES} | {"fixed": BASELINE}
    predictions = {title: cells[name] for title, name in shown.items() if name in cells}
    columns: dict[str, list[np.ndarray]] = {"image": [], "filtered": [], "truth": []}
    columns |= {title: [] for title in predictions}

    def load(file: Path) -> np.ndarray:
        return decode_gray(file.read_bytes(), str(file))

    with Source(plan.data) as source:
        for case, image in zip(rows["case"], rows["image"], strict=True):
            columns["image"].append(decode_gray(source.read(image), source.where(image)))
            columns["filtered"].append(load(root / "img_dir" / "test" / f"{case}.png"))
            columns["truth"].append(load(root / "ann_dir" / "test" / f"{case}.png"))
            for title, cell in predictions.items():
                columns[title].append(load(cell.folder / "predictions" / f"{case}.png"))
    plot_samples(columns, list(rows["case"]), path)
