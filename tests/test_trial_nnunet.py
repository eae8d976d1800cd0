"""A trial of real nnU-Net trainings: killed, continued, extended, reported."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")

from .support.commands import kill_in_training
from .support.nnunet import CONFIGURATION, Workspace

pytestmark = pytest.mark.slow
SETTING = 'mine={"weighting": "mad", "memory_size": 6, "min_history": 2, "batch_dice": false}'
EPOCHS = 3


def trial(space: Workspace, *arguments: object, code: int = 0) -> str:
    return space.run("dmf", "trial", "nnunet", *arguments, code=code, OMP_NUM_THREADS="1")


def begin(output: Path) -> list[object]:
    return [
        *(501, "-c", CONFIGURATION, "--trainers", "nnUNetTrainer", "--setting", SETTING),
        *("--folds", 0, "--epochs", EPOCHS, "--iterations", 4, "--device", "cpu", "-o", output),
    ]


@pytest.fixture(scope="module")
def done(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial whose first cell was killed after its first epoch, and the whole then run again."""
    output = tmp_path_factory.mktemp("trials") / "trial"
    jobs = trial(workspace, *begin(output), "--jobs")
    first, second = jobs.splitlines()
    assert first == f"dmf trial nnunet --output {output} --cell nnUNetTrainer/fold0"
    assert second.endswith("--cell mine/fold0")
    cell = output / "cells" / "mine" / "fold0"
    kill_in_training("nnunet", cell, **{**workspace.environment, "OMP_NUM_THREADS": "1"})
    assert list(cell.glob("results/*/*/fold_0/checkpoint_*.pth"))
    result = trial(workspace, "-o", output, "--workers", 1)
    assert "cells: 2 done" in result
    assert "Too few cases or groups to say anything: 3, and a test needs 6" in result
    return output


def test_a_killed_cell_continues_from_its_checkpoint(done):
    log = (done / "cells/mine/fold0.log").read_text()
    assert "DMF: resumed at step" in log
    fold = next((done / "cells/mine/fold0").glob("results/*/*/fold_0"))
    assert fold.parent.name == f"nnUNetTrainerDMF__nnUNetPlans__{CONFIGURATION}"
    assert len(list(fold.glob("training_log_*.txt"))) == 2
    assert pd.read_csv(fold / "dmf_log.csv")["step"].tolist() == list(range(4 * EPOCHS))
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    settings = checkpoint["dmf"]["settings"]
    assert settings["weighting"] == "mad"
    assert {v for k, v in settings.items() if k.endswith("batch_dice")} == {False}
    assert checkpoint["trainer_name"] == "nnUNetTrainerDMF"  # nnUNetv2_predict finds it


def test_cells_of_a_fold_begin_alike_and_every_validation_case_is_scored(workspace, done):
    results = [json.loads(p.read_text()) for p in done.glob("cells/*/*/result.json")]
    assert len({result["initial_weights"] for result in results}) == 1
    splits = workspace.root / "nnUNet_preprocessed/Dataset501_BUSI/splits_final.json"
    cases = set(json.loads(splits.read_text())[0]["val"])
    for folder in done.glob("cells/*/fold0"):
        scored = pd.read_csv(folder / "per_image.csv")
        assert {Path(name).stem for name in scored["image"]} == cases
    comparison = pd.read_csv(done / "comparison.csv")
    assert comparison["images"].tolist() == [len(cases)]
    assert comparison["detectable"].isna().all(), "three cases cannot show anything"


def test_the_page_stands_alone(done):
    page = (done / "report.html").read_text()
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page.replace("xlink:", ""))
    assert page.count("data:image/png;base64,") == 6
    assert page.count("<svg") == 2
    assert "largest gain" in page
    assert (
        "| Surface Dice | Lesions found | False lesions per case |"
        in (done / "report.md").read_text()
    )
    for name in ("scores.csv", "report.md", "tables.tex", "forest.svg", "curves.svg"):
        assert (done / name).stat().st_size > 0


def test_a_trial_grows_but_does_not_change(workspace, done):
    grown = trial(workspace, *begin(done), "--folds", "0,1", "--jobs")
    assert [line.split("--cell ")[1] for line in grown.splitlines()] == [
        "nnUNetTrainer/fold1", "mine/fold1"
    ]  # fmt: skip
    other = trial(workspace, *begin(done), "--epochs", 9, "--jobs", code=2)
    assert "holds a trial with epochs=3, not 9" in other


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([501, "-c", "4d"], 2, "no configuration '4d'"),
        ([501, "-c", CONFIGURATION, "--folds", "7"], 2, "has folds 0 to 4, not 7"),
        ([501, "-c", CONFIGURATION, "--trainers", "nnUNetTrainerX"], 2, "find the trainer nnUNetTrainerX"),
        ([777], 1, "nnUNetv2_plan_and_preprocess -d 777"),
        ([501, "--setting", 'x={"weighting": "madd"}'], 2, "did you mean 'mad'"),
        ([501, "--setting", "x={"], 2, "must be NAME=JSON"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_at_once(workspace, tmp_path, arguments, code, message):
    options = ("-o", tmp_path / "t", "--device", "cpu")
    assert message in trial(workspace, *arguments, *options, code=code)
    assert not (tmp_path / "t" / "cells").exists()
    assert os.path.lexists(tmp_path / "t") is False
