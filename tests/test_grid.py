"""The paper's grid through its command: real trainings, killed and continued, tables and figures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmf_plugins.errors import DataError, DMFError, UsageError
from dmf_plugins.grid.plan import GridPlan, grid_settings
from dmf_plugins.report.tables import best_in_bold, mean_and_std, table_latex, table_markdown
from dmf_plugins.trials.engine import RESULT
from dmf_plugins.trials.plan import EPOCH

from .support.commands import dmf, wait

VARIANT = 'bounded={"weighting": "bayesian", "min_weight": 0.1, "memory_size": 6, "min_history": 2}'
SMALL = ("--rules", "variance", "--auxiliaries", "none", "--seeds", 1, "--epochs", 2, "--size", 32,
         "--filters", 4, "--batch-size", 4)  # fmt: skip


def plan(output: Path, **changes: object) -> GridPlan:
    settings = grid_settings(["variance"], ["cb_dice"], {})
    options = dict(
        output=output, dataset="busi", data="x", settings=settings, seeds=[0], epochs=2, size=32,
        filters=4, batch_size=4,
    )  # fmt: skip
    return GridPlan(**{**options, **changes})


def test_settings_are_the_papers_grid():
    settings = grid_settings(
        ["variance", "mad"], ["tversky", "none"], {"mine": {"min_weight": 0.1}}
    )
    assert list(settings) == [
        "fixed", "variance+tversky", "variance+none", "mad+tversky", "mad+none", "mine"
    ]  # fmt: skip
    assert settings["fixed"] == {"weighting": "fixed", "auxiliary": None}
    assert settings["mad+none"] == {"weighting": "mad", "auxiliary": None}


@pytest.mark.parametrize(
    ("rules", "auxiliaries", "variants", "message"),
    [
        (["varience"], ["none"], {}, "did you mean 'variance'"),
        (["mad"], ["cbdice"], {}, "did you mean 'cb_dice'"),
        (["mad"], ["none"], {"mad+none": {}}, "taken"),
        (["mad"], ["none"], {"a/b": {}}, "slash"),
        (["mad"], ["none"], {"mine": {"memory": 3}}, "setting mine: unknown DMF option"),
    ],
)
def test_wrong_settings_are_named(rules, auxiliaries, variants, message):
    with pytest.raises(UsageError, match=message):
        grid_settings(rules, auxiliaries, variants)


def test_a_size_the_unet_cannot_halve_is_refused(tmp_path):
    with pytest.raises(UsageError, match="size must be a multiple of 16"):
        plan(tmp_path, size=100)
    own = plan(tmp_path, size=100, cfg_options={"model.backbone.num_stages": 3})
    assert own.size == 100


def test_a_grid_can_grow_but_not_change(tmp_path):
    plan(tmp_path / "g").begin()
    plan(tmp_path / "g").data_root(0).mkdir(parents=True)
    more = grid_settings(["mad"], ["none"], {})
    grown = plan(tmp_path / "g", settings=more, seeds=[1]).begin()
    assert grown.seeds == [0, 1]
    assert list(grown.settings) == ["fixed", "variance+cb_dice", "mad+none"]
    assert [cell.name for cell in GridPlan.load(tmp_path / "g").cells()][3] == "fixed/seed1"
    with pytest.raises(UsageError, match="epochs=2"):
        plan(tmp_path / "g", epochs=3).begin()
    with pytest.raises(UsageError, match="another setting 'fixed'"):
        plan(tmp_path / "g", settings={"fixed": {"weighting": "mad"}}).begin()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="was not written by"):
        plan(tmp_path / "other").begin()
    with pytest.raises(UsageError, match="holds no grid"):
        GridPlan.load(tmp_path / "none")
    whole = json.loads((tmp_path / "g" / "grid.json").read_text())
    for change in ({"settings": {}}, {"seeds": ["0"]}, {"epochs": "2"}, {"dataset": "x"}, {"x": 1}):
        (tmp_path / "g" / "grid.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(DataError, match=r"grid\.json is damaged .*remove it"):
            GridPlan.load(tmp_path / "g")
    for content in ("{", "[]", "1"):
        (tmp_path / "g" / "grid.json").write_text(content)
        with pytest.raises(DataError, match=r"grid\.json is damaged"):
            GridPlan.load(tmp_path / "g")
    (tmp_path / "g" / "grid.json").unlink()  # as the message says
    assert plan(tmp_path / "g").begin().begun


def test_a_mistyped_grid_can_be_corrected(phantoms, tmp_path):
    (tmp_path / "empty").mkdir()
    command = ("--output", tmp_path / "g", "--jobs", *SMALL)
    wrong = dmf("grid", tmp_path / "empty", *command)
    assert (wrong.returncode, "no BUSI images" in wrong.stderr) == (1, True)
    right = dmf("grid", phantoms, *command)
    assert right.returncode == 0, right.stderr
    lines = right.stdout.splitlines()
    assert len(lines) == 2  # progress bars are no jobs
    assert all(line.startswith("dmf grid ") for line in lines)
    other = dmf("grid", tmp_path / "empty", *command)  # now its data exist
    assert (other.returncode, "choose another --output" in other.stderr) == (2, True)


def test_a_cell_runs_once_at_a_time(tmp_path):
    cell = plan(tmp_path).cells()[0]
    with (
        cell.lock(),
        pytest.raises(DMFError, match="another process"),
        plan(tmp_path).cells()[0].lock(),
    ):
        pass
    with cell.lock():
        pass


def test_tables_mark_the_best_and_escape_latex():
    results = pd.DataFrame(
        {
            "weighting": ["a", "a", "b_c", "b_c"],
            "dice": [80.0, 82.0, 90.0, 91.0],
            "hd": [3.0, 3, 5, 5],
        }
    )
    table = mean_and_std(results, ["weighting"], {"dice": "Dice", "hd": "HD95"})
    shown = best_in_bold(table, smaller_is_better=["HD95"])
    assert shown.loc["b_c", "Dice"] == "**90.50 ± 0.71**"
    assert shown.loc["a", "Dice"] == "81.00 ± 1.41"
    assert shown.loc["a", "HD95"] == "**3.00 ± 0.00**"
    assert table_markdown(shown).splitlines()[3] == "| b_c | **90.50 ± 0.71** | 5.00 ± 0.00 |"
    latex = table_latex(shown, "Caption")
    assert "b\\_c & \\textbf{90.50 $\\pm$ 0.71} & 5.00 $\\pm$ 0.00 \\\\" in latex


def test_names_of_settings_do_not_break_a_table():
    results = pd.DataFrame({"setting": ["a|b & c", r"{#1} 50% $x^2~\y$"], "dice": [80.0, 81.0]})
    shown = best_in_bold(mean_and_std(results, ["setting"], {"dice": "Dice"}))
    assert table_markdown(shown).splitlines()[2] == r"| a\|b & c | 80.00 |"
    latex = table_latex(shown, "Caption")
    assert r"a|b \& c & 80.00 \\" in latex
    special = r"\{\#1\} 50\% \$x\textasciicircum{}2\textasciitilde{}\textbackslash{}y\$"
    assert special + r" & \textbf{81.00} \\" in latex


@pytest.fixture(scope="module")
def grid(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small grid that was killed in its second cell, moved, and then continued."""
    pytest.importorskip("mmseg.models", reason="no MMSegmentation", exc_type=ImportError)
    before = tmp_path_factory.mktemp("grids") / "before"
    output = before.with_name("grid")
    command = [sys.executable, "-m", "dmf_plugins", "grid", str(phantoms), *map(str, SMALL)]
    command += ["--variant", VARIANT]
    cells = before / "cells"
    first, second = cells / "fixed" / "seed0" / RESULT, cells / "variance+none" / "seed0"
    process = subprocess.Popen(
        [*command, "--workers", "1", "--output", str(before)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait(lambda: (second / EPOCH).exists() or process.poll() is not None, 300)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert first.exists()
    assert not (second / RESULT).exists()
    stamp = first.stat().st_mtime_ns
    assert not (before / "tables.md").exists()
    before.rename(output)
    first, second = (output / path.relative_to(before) for path in (first, second))
    command += ["--workers", "2", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    logs = "\n".join(p.read_text()[-1500:] for p in output.glob("cells/*/*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert first.stat().st_mtime_ns == stamp  # a finished cell is never run again
    assert "resumed epoch: 1" in second.with_name("seed0.log").read_text()
    return output


@pytest.mark.slow
def test_cells_share_split_and_initial_network_and_are_scored_on_the_test_part(grid):
    results = pd.read_csv(grid / "results.csv")
    assert list(results["setting"]) == ["fixed", "variance+none", "bounded"]
    assert results["initial_weights"].nunique() == 1
    assert results["lesion_dice"].between(0, 100).all()
    truth = sorted(p.name for p in (grid / "data/seed0/BUSI/ann_dir/test").iterdir())
    for cell in GridPlan.load(grid).cells():
        assert sorted(p.name for p in (cell.folder / "predictions").iterdir()) == truth
        images = pd.read_csv(cell.folder / "per_image.csv")
        # what mmengine's evaluator saw and what lies on disk agree
        assert 100 * images["dice"].mean() == pytest.approx(
            cell.result()["test"]["lesion_dice"], abs=0.01
        )
        log = pd.read_csv(cell.folder / "dmf_log.csv")
        assert log["epoch"].max() == 1
        assert not (cell.folder / "work").exists()


@pytest.mark.slow
def test_tables_and_figures_are_written(grid):
    text = (grid / "tables.md").read_text()
    assert "± standard deviation" in text
    assert re.search(r"\| none \| fixed \| fixed \| .*\d\d\.\d\d", text)
    assert "(Wilcoxon)" in text
    assert "\\begin{tabular}" in (grid / "tables.tex").read_text()
    for name in ("weights", "terms", "samples"):
        assert (grid / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (grid / f"{name}.svg").read_text()
    comparison = pd.read_csv(grid / "comparison.csv")
    assert list(comparison["a"]) == ["variance+none", "bounded"]
    assert np.all(comparison["p_holm"] >= comparison["p"])


@pytest.mark.slow
def test_jobs_for_a_scheduler_and_single_cells(grid):
    nothing = dmf("grid", "--output", grid, "--jobs")
    assert nothing.stdout.strip() == ""
    cell = GridPlan.load(grid).cells()[1]
    (cell.folder / RESULT).rename(cell.folder / "aside")
    jobs = dmf("grid", "--output", grid, "--jobs").stdout.strip()
    (cell.folder / "aside").rename(cell.folder / RESULT)
    assert jobs == f"dmf grid --output {grid} --cell variance+none/seed0"
    assert "has finished already" in dmf("grid", "--output", grid, "--cell", 1).stdout
    assert dmf("grid", "--output", grid, "--cell", 99).returncode == 2
    assert dmf("grid", "--output", grid, "--report").returncode == 0


@pytest.mark.slow
def test_a_cluster_gets_what_has_not_finished(grid):
    pytest.importorskip("submitit", reason="submitit is not installed")
    nothing = dmf("grid", "--output", grid, "--cluster", "debug")
    assert nothing.stdout == "every cell has finished; look with --report\n", nothing.stderr


@pytest.mark.slow
def test_cells_that_began_differently_are_not_compared(grid):
    cell = GridPlan.load(grid).cells()[1]
    good = (cell.folder / RESULT).read_text()
    try:
        (cell.folder / RESULT).write_text(json.dumps({**json.loads(good), "initial_weights": "x"}))
        result = dmf("grid", "--output", grid, "--report")
        assert (result.returncode, "different networks" in result.stderr) == (1, True)
        (cell.folder / RESULT).write_text(good[:40])
        result = dmf("grid", "--output", grid, "--report")
        assert (result.returncode, "is damaged" in result.stderr) == (1, True)
    finally:
        (cell.folder / RESULT).write_text(good)
