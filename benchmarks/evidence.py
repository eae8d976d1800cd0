"""Tables and figures of docs/evidence.md, from the cells that docs/evidence/plan.md describes.

python benchmarks/evidence.py --grid GRID --trial TRIAL --output docs/evidence
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats

from dmf_plugins.grid.plan import BASELINE, GridPlan
from dmf_plugins.metrics.compare import image_scores
from dmf_plugins.metrics.evaluate import PER_IMAGE
from dmf_plugins.report.dynamics import save_figure
from dmf_plugins.report.evaluation import comparison_markdown
from dmf_plugins.trials.engine import Cell
from dmf_plugins.trials.html import forest
from dmf_plugins.trials.plan import TrialPlan
from dmf_plugins.trials.report import compare_cells, read_groups

DEFAULT = "variance+cb_dice"
Runs = Sequence[tuple[Cell, pd.Series]]


def whole_repeats(plan: GridPlan) -> list[Cell]:
    """Cells of the repeats of which every cell has finished."""
    open_repeats = {cell.seed // plan.folds for cell in plan.cells() if not cell.finished}
    return [cell for cell in plan.cells() if cell.seed // plan.folds not in open_repeats]


def per_image(cell: Cell, lesion: bool) -> pd.DataFrame:
    table = pd.read_csv(cell.folder / PER_IMAGE, dtype={"image": str}).set_index("image")
    return table[(table["true_pixels"] > 0) == lesion]


def keep_images(cells: Sequence[Cell], path: Path) -> None:
    """What every training scored on every case, so that all tables can be made again."""
    columns = ["image", "class", "dice", "true_pixels", "predicted_pixels"]
    frames = [
        pd.read_csv(cell.folder / PER_IMAGE, usecols=columns).assign(
            setting=cell.setting, repeat=cell.folder.name
        )
        for cell in cells
    ]
    packed = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    pd.concat(frames).to_csv(path, index=False, float_format="%.4g", compression=packed)


def compared(
    name: str, score: str, runs: Runs, reference: str, groups: dict[str, str], output: Path
) -> pd.DataFrame:
    table = compare_cells(runs, reference, groups)
    table.to_csv(output / f"{name}.csv", index=False, float_format="%.5g")
    print(f"## {name}, against {reference}\n\n{comparison_markdown(table, score)}")
    return table


def draw(table: pd.DataFrame, title: str, path: Path) -> None:
    figure = forest(table, title)
    if figure is not None:
        save_figure(figure, path)


def by_training(title: str, runs: Runs, reference: str) -> None:
    """Mean of every training, and the paired differences with the training as the unit."""
    frame = pd.DataFrame(
        [(c.setting, c.seed, s.mean()) for c, s in runs], columns=["a", "run", "m"]
    )
    table = frame.pivot(index="run", columns="a", values="m")[list(frame["a"].unique())]
    found = pd.DataFrame({"mean": table.mean(), "std": table.std()})
    difference = table.sub(table[reference], axis=0)
    found["difference"], error = difference.mean(), difference.sem()
    reach = stats.t.ppf(0.975, len(table) - 1) * error
    found["low"], found["high"] = found["difference"] - reach, found["difference"] + reach
    found["higher in"] = (difference > 0).sum()
    print(f"{title} per training, {len(table)} each:\n{found.round(4).to_string()}\n")


def ultrasound(plan: GridPlan, output: Path) -> None:
    cells = whole_repeats(plan)
    print(
        f"{len(cells)} trainings of {len({c.seed for c in cells}) // plan.folds} whole repeat(s)\n"
    )
    keep_images(cells, output / "ultrasound_images.csv.gz")
    groups = read_groups(None, plan.data_root(cells[0].seed) / "manifest.csv")
    dice = [(c, per_image(c, lesion=True)["dice"]) for c in cells]
    table = compared("dice", "dice", dice, BASELINE, groups, output)
    draw(table, "lesion Dice", output / "dice.svg")
    by_training("lesion Dice", dice, BASELINE)
    compared("exploratory", "dice", dice, DEFAULT, groups, output)
    lost = [(c, (values == 0).astype(float)) for c, values in dice]
    by_training("lesions missed altogether", lost, BASELINE)
    pixels = [(c, per_image(c, lesion=False)["predicted_pixels"].astype(float)) for c in cells]
    alarms = [(c, (values > 0).astype(float)) for c, values in pixels]
    table = compared("false_alarms", "alarms", alarms, BASELINE, groups, output)
    draw(table, "false alarms", output / "false_alarms.svg")
    by_training("false alarm pixels", pixels, BASELINE)


def hippocampus(plan: TrialPlan, output: Path) -> None:
    cells = [cell for cell in plan.cells() if cell.finished]
    reference = next(iter(plan.settings))
    keep_images(cells, output / "hippocampus_images.csv")
    mean = [(cell, image_scores(cell.folder)) for cell in cells]
    compared("hippocampus", "dice", mean, reference, {}, output)
    tables = [(cell, pd.read_csv(cell.folder / PER_IMAGE, dtype={"image": str})) for cell in cells]
    for label in tables[0][1]["class"].unique():
        one = [(c, t[t["class"] == label].set_index("image")["dice"].fillna(1)) for c, t in tables]
        compared(f"hippocampus_{label.lower()}", "dice", one, reference, {}, output)
    course(cells, output)


def course(cells: Sequence[Cell], output: Path) -> None:
    """nnU-Net's pseudo Dice of every class after each epoch."""
    rows = []
    for cell in cells:
        (path,) = cell.folder.glob("results/*/*/fold_*/checkpoint_final.pth")
        log = torch.load(path, map_location="cpu", weights_only=False)["logging"]
        for epoch, scores in enumerate(log["dice_per_class_or_region"]):
            for label, score in enumerate(scores, start=1):
                rows.append((cell.setting, cell.seed, epoch + 1, label, float(score)))
    table = pd.DataFrame(rows, columns=["setting", "fold", "epoch", "label", "pseudo_dice"])
    table.to_csv(output / "course.csv", index=False, float_format="%.4g")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, table["label"].nunique(), sharey=True, squeeze=False)[0]
    for axes, (label, part) in zip(panels, table.groupby("label"), strict=True):
        for setting, runs in part.groupby("setting", sort=False):
            axes.plot(runs.groupby("epoch")["pseudo_dice"].mean(), label=setting)
        axes.set(title=f"label {label}", xlabel="epoch", ylim=(0, 1))
    panels[0].set_ylabel("pseudo Dice, mean of the folds")
    panels[0].legend(fontsize=7)
    save_figure(figure, output / "course.svg")
    last = table[table["epoch"] == table["epoch"].max()]
    print(last.pivot_table(index="setting", columns="label", values="pseudo_dice", sort=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=Path, help="folder of E1 and E3")
    parser.add_argument("--trial", type=Path, help="folder of E2")
    parser.add_argument("--output", type=Path, default=Path("docs/evidence"))
    arguments = parser.parse_args()
    if arguments.grid:
        ultrasound(GridPlan.load(arguments.grid), arguments.output)
    if arguments.trial:
        hippocampus(TrialPlan.load(arguments.trial), arguments.output)


if __name__ == "__main__":
    main()
