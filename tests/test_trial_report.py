"""What a trial says of its cells' scores, without training any."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmf_plugins.metrics.compare import compare_scores
from dmf_plugins.trials.engine import Cell
from dmf_plugins.trials.plan import TrialPlan
from dmf_plugins.trials.report import find, read_groups

from .support.commands import dmf

SEEDS = [0, 1]
CASES = 12


def finish(cell: Cell, dice: np.ndarray, cases: list[str] | None = None) -> None:
    cell.folder.mkdir(parents=True)
    pd.DataFrame(
        {
            "image": cases or [f"case{i}.png" for i in range(len(dice))],
            "class": "lesion",
            **dict.fromkeys(("dice", "iou", "precision", "recall"), dice),
            "true_pixels": 9,
            "predicted_pixels": 9,
        }
    ).to_csv(cell.folder / "per_image.csv", index=False)
    result = {
        "initial_weights": "same",
        "predictions": "predictions",
        "log": "none.csv",
        "scores": {"dice": float(dice.mean()), "false_lesions": 1.5 - float(dice.mean())},
    }
    (cell.folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def plan(tmp_path: Path) -> TrialPlan:
    """Three settings and two repeats: b gains a sure 2 points, c more but by one case alone."""
    plan = TrialPlan(
        output=tmp_path / "trial",
        framework="nnunet",
        settings={"a": {}, "b": {}, "c": {}},
        seeds=SEEDS,
        options={"dataset": "501"},
    ).begin()
    base = np.linspace(0.3, 0.8, CASES)
    gain = {"a": 0.0 * base, "b": 0.02 + 0.001 * np.arange(CASES), "c": np.eye(CASES)[0] * 0.6}
    for cell in plan.cells():
        noise = np.random.default_rng(cell.seed).normal(0, 0.001, CASES)
        finish(cell, base + noise + gain[cell.setting])
    return plan


def test_the_verdict_is_of_a_setting_beyond_chance_if_there_is_one(plan):
    findings = find(plan, {})
    row = findings.comparison.set_index("a").loc["b"]
    assert findings.comparison["difference"].idxmax() == 1, "c differs more, but not surely"
    assert findings.verdict.startswith("b helps: +2.55 points of Dice against a (95 % interval ")
    assert "could have shown at 80 % power is 0." in findings.verdict
    # scores are averaged over the repeats before anything is tested
    assert (row["images"], len(findings.scores["b"])) == (CASES, CASES)
    assert row["detectable"] == pytest.approx((row["high"] - row["low"]) / 2 * 2.8 / 1.96)


def test_the_table_has_the_scores_that_are_known_and_fewer_false_lesions_are_better(plan):
    table = find(plan, {}).table
    assert list(table) == ["Dice", "False lesions per case"]
    assert {name: list(table.index[table[name].str.startswith("**")]) for name in table} == {
        "Dice": ["c"], "False lesions per case": ["c"]
    }  # fmt: skip
    assert table.loc["a", "False lesions per case"].startswith("0.95 ± "), "a number, no percentage"


def test_copies_of_a_case_in_one_group_widen_the_interval_again(plan):
    """Four copies of every case look like more evidence, unless groups say that they are copies."""
    scores = find(plan, {}).scores
    copies = {
        name: pd.concat([s.rename(lambda case, n=n: f"{case}_{n}") for n in range(4)])
        for name, s in scores.items()
    }
    groups = {case: case.split("_")[0] for case in copies["a"].index}

    def width(of: dict[str, pd.Series], groups: dict[str, str] | None = None) -> float:
        row = compare_scores([(("b", of["b"]), ("a", of["a"]))], groups=groups).iloc[0]
        return float(row["high"] - row["low"])

    alone = width(scores)
    assert width(copies) < 0.6 * alone
    assert width(copies, groups) == pytest.approx(alone, rel=0.05)
    once, many = (
        compare_scores([(("b", of["b"]), ("a", of["a"]))], groups=groups).iloc[0]["p"]
        for of in (scores, copies)
    )
    assert once == pytest.approx(many)


@pytest.mark.parametrize(("cases", "gain"), [(1, 0.1), (2, 0.1), (CASES, 0.0)])
def test_too_few_cases_or_none_that_differ_claim_nothing(plan, cases, gain):
    for cell in plan.cells():
        path = cell.folder / "per_image.csv"
        table = pd.read_csv(path).iloc[:cases].assign(dice=0.5 + gain * (cell.setting != "a"))
        table.to_csv(path, index=False)
    result = report(plan)
    assert result.returncode == 0, result.stderr
    assert "nan" not in result.stdout + (plan.output / "report.md").read_text()
    assert "could have shown" not in result.stdout
    said = " ".join(result.stdout.split())
    if gain:
        assert f"Too few cases or groups to say anything: {cases}, and a test needs 6" in said
    else:
        assert "No setting is better than a beyond chance" in said


def test_a_group_and_a_case_of_one_name_are_two():
    scores = pd.Series([0.1, 0.2, 0.3], ["x", "y", "z"])
    pairs = [(("a", scores), ("b", scores * 2))]
    (found,) = compare_scores(pairs, groups={"x": "z", "y": "p"})["units"]
    assert found == 3


def test_groups_come_from_the_manifest_where_no_file_is_named(tmp_path):
    manifest = tmp_path / "manifest.csv"
    assert read_groups(None, manifest) == {}
    pd.DataFrame({"case": ["x", "y"], "group": ["p1", None]}).to_csv(manifest, index=False)
    assert read_groups(None, manifest) == {"x": "p1"}
    manifest.write_text("case,group\np0.s0,p0\np0.s1.png,p0\n")
    assert {"p0.s0": "p0", "p0.s1": "p0"}.items() <= read_groups(None, manifest).items()


def report(plan: TrialPlan, *more: object) -> subprocess.CompletedProcess[str]:
    preprocessed = plan.output.parent / "preprocessed"
    (preprocessed / "Dataset501_X").mkdir(parents=True, exist_ok=True)
    return dmf(
        *("trial", "nnunet", "--output", plan.output, "--report", *more),
        nnUNet_preprocessed=str(preprocessed),
    )


def test_cells_with_other_cases_are_named_and_nothing_is_written(plan):
    cell = plan.cells()[1]
    table = pd.read_csv(cell.folder / "per_image.csv")
    table.iloc[1:].to_csv(cell.folder / "per_image.csv", index=False)
    result = report(plan)
    assert result.returncode == 1
    message = " ".join(result.stderr.split())
    assert "b/fold0 and a/fold0 were scored on different cases, such as case0.png" in message
    assert f"remove {cell.folder}" in message
    assert not (plan.output / "report.md").exists()


def test_a_report_takes_groups_and_needs_no_pictures(plan, tmp_path):
    groups = tmp_path / "groups.csv"
    groups.write_text("case,patient\ncase0,1\n")
    refused = report(plan, "--groups", groups)
    assert refused.returncode == 2
    assert f"{groups} must be a CSV with the columns case and group" in refused.stderr
    groups.write_text("case,group\nother,1\n")
    refused = report(plan, "--groups", groups)
    assert f"{groups} has a group for none of the cases, such as case0" in refused.stderr
    assert not (plan.output / "report.md").exists()
    groups.write_text("case,group\ncase0.png,1\ncase1.nii.gz,1\n")
    result = report(plan, "--groups", groups)
    assert result.returncode == 0, result.stderr
    assert "cells: 6 done" in result.stdout
    assert set(pd.read_csv(plan.output / "comparison.csv")["units"]) == {CASES - 1}
    assert "b helps" in (plan.output / "report.html").read_text()


def test_a_trial_of_the_other_framework_is_named(plan):
    pytest.importorskip("mmseg.models", reason="no MMSegmentation", exc_type=ImportError)
    result = dmf("trial", "mmseg", "--output", plan.output, "--report")
    assert (
        result.returncode,
        "holds a trial with nnU-Net; use: dmf trial nnunet" in result.stderr,
    ) == (2, True)
