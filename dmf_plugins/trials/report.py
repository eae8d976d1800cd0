"""What a trial says: paired differences on the same images, and the files that show them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.metrics.compare import compare_scores, image_scores
from dmf_plugins.metrics.evaluate import PER_IMAGE
from dmf_plugins.metrics.labelmaps import stem
from dmf_plugins.report.evaluation import comparison_markdown
from dmf_plugins.report.tables import best_in_bold, mean_and_std, table_latex, table_markdown
from dmf_plugins.trials.engine import Cell
from dmf_plugins.trials.plan import TrialPlan

# half the width of a 95 % interval to the difference seen in 80 % of trials
_POWER = (1.96 + 0.84) / 1.96
_FEWEST = 6  # of fewer, Wilcoxon's smallest p is 0.0625
BEYOND_OVERLAP = {
    "surface_dice": "Surface Dice",
    "lesions_found": "Lesions found",
    "false_lesions": "False lesions per case",
    "false_alarms": "False alarms",
}
SMALLER_IS_BETTER = ("False lesions per case", "False alarms")
_SCORES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    **BEYOND_OVERLAP,
}
_NUMBERS = ["false_lesions"]  # the others are shares


@dataclass
class Findings:
    """Everything a report shows.

    Attributes:
        plan: the trial.
        cells: those that have finished.
        reference: setting the others are compared with.
        scores: setting -> Dice per image, averaged over repeats.
        comparison: one row per other setting, as
            :func:`~dmf_plugins.metrics.compare.compare_scores` has it, with ``detectable``.
        table: scores as text, per setting.
        classes: mean Dice per class and setting.
        verdict: one sentence.
    """

    plan: TrialPlan
    cells: list[Cell]
    reference: str
    scores: dict[str, pd.Series]
    comparison: pd.DataFrame
    table: pd.DataFrame
    classes: pd.DataFrame
    verdict: str


def write_report(plan: TrialPlan, framework: Any, groups: Path | None = None) -> list[str]:
    """Write the report of what is finished into the trial's folder; the lines to show for it.

    Raises:
        DataError: no cell has finished, or cells of one repeat hold different cases or began from
            different networks.
        UsageError: ``groups`` is no table of groups, or of none of the cases.
    """
    known = read_groups(groups, framework.manifest(plan))
    findings = find(plan, known)
    cases = findings.scores[findings.reference].index
    if groups is not None and known.keys().isdisjoint(cases):
        raise UsageError(f"{groups} has a group for none of the cases, such as {cases[0]}")
    output = plan.output
    written = {
        "scores.csv": pd.DataFrame(findings.scores).rename_axis("image").to_csv(),
        "report.md": _markdown(findings),
        "tables.tex": table_latex(findings.table, "Dice and others, percent, over all cells"),
    }
    if not findings.comparison.empty:
        written["comparison.csv"] = findings.comparison.to_csv(index=False, float_format="%.6g")
    from dmf_plugins.trials.html import write_html

    for name, content in written.items():
        (output / name).write_text(content, encoding="utf-8")
    names = [*written, *write_html(findings, framework)]
    states = pd.Series([cell.state for cell in plan.cells()]).value_counts()
    return [
        *(f"wrote {output / name}" for name in names),
        "cells: " + ", ".join(f"{number} {state}" for state, number in states.items()),
        findings.verdict,
    ]


def find(plan: TrialPlan, groups: Mapping[str, str]) -> Findings:
    """Compare every setting with the first one that has finished cells."""
    done = [cell for cell in plan.cells() if cell.finished]
    if not done:
        raise DataError(f"no cell of {plan.output} has finished yet; its logs are in cells/")
    check_alike(done)
    runs = [(cell, image_scores(cell.folder)) for cell in done]
    settings = [name for name in plan.settings if any(c.setting == name for c in done)]
    reference = settings[0]
    comparison = compare_cells(runs, reference, groups)
    everyone = {name: {c.seed for c in done if c.setting == name} for name in settings}
    scores = {name: _averaged(runs, name, seeds) for name, seeds in everyone.items()}
    rows = pd.concat([pd.read_csv(c.folder / PER_IMAGE).assign(setting=c.setting) for c in done])
    return Findings(
        plan=plan,
        cells=done,
        reference=reference,
        scores=scores,
        comparison=comparison,
        table=_table(done),
        classes=rows.pivot_table(
            index="class", columns="setting", values="dice", sort=False
        ).rename_axis(columns=None),
        verdict=_verdict(comparison, reference),
    )


def compare_cells(
    runs: Sequence[tuple[Cell, pd.Series]], reference: str, groups: Mapping[str, str]
) -> pd.DataFrame:
    """Every setting against ``reference`` on the repeats both have, from scores per image.

    The scores of an image are averaged over repeats first. ``detectable`` is the smallest difference
    seen in 80 % of such experiments, without correction for several comparisons; NaN for fewer than
    six cases or groups, and where all differ alike, which say nothing of it.
    """
    seeds: dict[str, set[int]] = {}
    for cell, _ in runs:
        seeds.setdefault(cell.setting, set()).add(cell.seed)
    pairs = []
    for other, repeats in seeds.items():
        common = repeats & seeds.get(reference, set())
        if other != reference and common:
            a, b = (_averaged(runs, setting, common) for setting in (other, reference))
            pairs.append(((other, a), (reference, b)))
    if not pairs:
        return pd.DataFrame()
    comparison = compare_scores(pairs, groups=groups)
    width = (comparison["high"] - comparison["low"]).where(comparison["units"] >= _FEWEST).round(9)
    comparison["detectable"] = width.where(width > 0) / 2 * _POWER
    return comparison


def _table(done: list[Cell]) -> pd.DataFrame:
    """Every score that cells have, as ``dmf evaluate`` gives it, mean and deviation over the cells."""
    rows = pd.DataFrame([{"setting": c.setting, **c.result()["scores"]} for c in done])
    titles = {name: title for name, title in _SCORES.items() if name in rows}
    shares = [name for name in titles if name not in _NUMBERS]
    rows[shares] *= 100
    return best_in_bold(mean_and_std(rows, ["setting"], titles), SMALLER_IS_BETTER)


def read_groups(given: Path | None, manifest: Path) -> dict[str, str]:
    """Case -> group, from ``--groups`` or the converter's manifest; empty without either.

    A case that is a file name is there by its stem too; one without a group is left out.

    Raises:
        UsageError: the file given lacks the columns.
    """
    path = given or manifest
    if given is None and not path.is_file():
        return {}
    try:
        table = pd.read_csv(path, dtype=str)[["case", "group"]].dropna()
        rows = list(table.itertuples(index=False, name=None))
        return {stem(Path(case)): group for case, group in rows} | dict(rows)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path} must be a CSV with the columns case and group ({error})"
        ) from error


def _averaged(runs: Sequence[tuple[Cell, pd.Series]], setting: str, seeds: set[int]) -> pd.Series:
    """Score of each case, its mean over the repeats that have it."""
    kept = [scores for cell, scores in runs if cell.setting == setting and cell.seed in seeds]
    scores = pd.concat(kept)
    return scores.groupby(scores.index.map(lambda name: stem(Path(name)))).mean()


def check_alike(done: Sequence[Cell]) -> None:
    """Raise ``DataError`` for cells of one repeat that hold other cases or began otherwise."""
    first: dict[int, tuple[Cell, set[str], str]] = {}
    for cell in done:
        images = set(pd.read_csv(cell.folder / PER_IMAGE, dtype={"image": str})["image"])
        began = cell.result()["initial_weights"]
        other, their_images, their_began = first.setdefault(cell.seed, (cell, images, began))
        cure = f"remove {cell.folder} or {other.folder}, whichever is wrong, and run again"
        for image in sorted(images ^ their_images):
            raise DataError(
                f"{cell.name} and {other.name} were scored on different cases, such as {image}; {cure}"
            )
        if began != their_began and cell.options.get("trainer") == other.options.get("trainer"):
            raise DataError(f"{cell.name} and {other.name} began from different networks; {cure}")


def best_row(comparison: pd.DataFrame) -> dict[str, Any]:
    """The row of the setting with the largest difference, of those beyond chance if there are any."""
    rows: list[dict[str, Any]] = comparison.to_dict("records")  # type: ignore[assignment]
    return max(rows, key=lambda row: (_helps(row), row["difference"]))


def _helps(row: Mapping[str, Any]) -> bool:
    return bool(row["p_holm"] < 0.05 and row["low"] > 0)


def _verdict(comparison: pd.DataFrame, reference: str) -> str:
    if comparison.empty:
        return f"Only {reference} has finished; there is nothing to compare yet."
    best = best_row(comparison)
    difference, low, high, detectable = (
        100 * best[name] for name in ("difference", "low", "high", "detectable")
    )
    leading = f"The {'best' if difference > 0 else 'nearest'}, {best['a']}"
    numbers = f"{difference:+.2f} points of Dice against {reference}"
    if best["units"] < _FEWEST:
        return (
            f"Too few cases or groups to say anything: {best['units']}, and a test needs {_FEWEST}. "
            f"{leading}: {numbers}."
        )
    p = f"= {best['p_holm']:.3f}" if best["p_holm"] >= 0.001 else "< 0.001"
    numbers += f" (95 % interval {low:+.2f} to {high:+.2f}, {best['images']} cases, Holm p {p})"
    if detectable > 0:
        numbers += (
            "; the smallest difference this trial could have shown at 80 % power is "
            f"{detectable:.2f} points"
        )
    if _helps(best):
        return f"{best['a']} helps: {numbers}."
    return f"No setting is better than {reference} beyond chance. {leading}: {numbers}."


def _markdown(findings: Findings) -> str:
    plan = findings.plan
    settings = plan.settings.items()
    text = [
        f"# Trial with {plan.title}: {len(findings.cells)} of {len(plan.cells())} trainings\n",
        f"{findings.verdict}\n",
        "## Settings\n",
        *(
            f"- {name}: {json.dumps(options) if options else 'as it is'}"
            for name, options in settings
        ),
        f"- all: {json.dumps(plan.options)}\n",
        "## Scores, percent, mean ± standard deviation over trainings",
        table_markdown(findings.table),
        "## Dice per class",
        table_markdown(findings.classes.mul(100).round(2)),
    ]
    if not findings.comparison.empty:
        text += [
            f"## Against {findings.reference}: Dice per case, averaged over repeats (Wilcoxon)",
            comparison_markdown(findings.comparison, "dice"),
        ]
    return "\n".join(text)
