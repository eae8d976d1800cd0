"""What a trial trains, before anything is trained: settings, lengths, cells."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.trials.engine import Cell, job_commands, run_one
from dmf_plugins.trials.plan import TrialPlan

from .support.commands import dmf


def rates(epochs: int, before: int, schedulers: object) -> list[float]:
    """The learning rate of every epoch, by mmengine's own schedulers, of a config made so long."""
    pytest.importorskip("mmseg.models", reason="no MMSegmentation", exc_type=ImportError)
    from mmengine.config import Config
    from mmengine.registry import PARAM_SCHEDULERS

    from dmf_plugins.trials.mmseg import set_length

    config = Config({"train_cfg": {"max_epochs": before}, "param_scheduler": schedulers})
    set_length(config, epochs)
    assert config.train_cfg.max_epochs == epochs
    given: Any = config.param_scheduler
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    built = [
        PARAM_SCHEDULERS.build(one, default_args={"optimizer": optimizer})
        for one in ([given] if isinstance(given, dict) else given)
    ]
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for one in built:
            one.step()
    return found


WARM_UP = {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 5}


@pytest.mark.parametrize(
    "schedulers",
    [
        [WARM_UP, {"type": "PolyLR", "begin": 5, "end": 100}],
        [WARM_UP, {"type": "CosineAnnealingLR", "begin": 5, "T_max": 95, "end": 100}],
        [{"type": "CosineAnnealingLR", "T_max": 100}],
        {"type": "PolyLR", "begin": 0, "end": 100},
        [{"type": "PolyLR", "begin": 0, "end": 300}],  # of a base config
    ],
)
def test_a_shorter_training_keeps_its_warm_up_and_decays_to_its_own_end(schedulers):
    found = rates(20, 100, schedulers)
    peak = 5 if "LinearLR" in str(schedulers) else 0
    assert found[peak] == max(found) == pytest.approx(1)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 0.1


@pytest.mark.parametrize(
    "scheduler",
    [
        {"type": "MultiStepLR", "milestones": [10, 80]},
        {"type": "StepLR", "step_size": 30},
        {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 30},
        {"type": "PolyLR", "begin": 20, "end": 100},
    ],
)
def test_a_training_that_is_over_before_its_schedule_is_refused(scheduler):
    with pytest.raises(UsageError, match=rf"--epochs 20 is over before .*{scheduler['type']}"):
        rates(20, 100, [scheduler])
    assert len(rates(100, 100, [scheduler])) == 100


def trial(output: Path, *settings: str) -> TrialPlan:
    return TrialPlan(
        output=output, framework="nnunet", settings={name: {} for name in settings}, seeds=[0, 1]
    )


def test_printed_jobs_name_their_cells_which_stay_when_a_trial_grows(tmp_path):
    printed = [shlex.split(line) for line in job_commands(trial(tmp_path, "a", "b c"))]
    assert printed[3] == [
        "dmf", "trial", "nnunet", "--output", str(tmp_path), "--cell", "b c/fold1"
    ]  # fmt: skip
    grown = trial(tmp_path, "a", "b c", "d")
    ran: list[str] = []
    for *_, name in printed:
        run_one(grown, name, lambda cell: ran.append(cell.name))
    assert ran == ["a/fold0", "b c/fold0", "a/fold1", "b c/fold1"]
    run_one(grown, "2", lambda cell: ran.append(cell.name))  # as commands printed earlier
    assert ran[-1] == "d/fold0"


def test_a_cell_that_another_process_finished_just_now_is_not_trained_again(tmp_path, monkeypatch):
    plan = trial(tmp_path, "a")
    lock = Cell.lock

    def finish_first(cell: Cell) -> object:
        cell.folder.mkdir(parents=True)
        cell.finish({"by": "another"})
        return lock(cell)

    monkeypatch.setattr(Cell, "lock", finish_first)
    ran: list[Cell] = []
    assert run_one(plan, "a/fold0", ran.append) == "a/fold0 has finished already"
    assert not ran


LOVASZ = {"type": "LovaszLoss", "reduction": "none"}


def test_a_trial_of_mmsegmentation_takes_what_its_loss_takes():
    pytest.importorskip("mmseg.models", reason="no MMSegmentation", exc_type=ImportError)
    from dmf_plugins.trials.mmseg import settings

    own = {"mine": {"losses": ["ce", LOVASZ], "loss_weight": 0.4}}
    found = settings(["mine", "stock"], own)
    assert list(found.items()) == [("mine", {"dmf": own["mine"]}), ("stock", {})]
    for name, options, message in (
        ("stock", {"weighting": "mad"}, "cannot be called 'stock'"),
        ("..", {}, "cannot be called '..'"),
        ("a/b", {}, "with a slash"),
        ("mine", ["ce"], "must be a JSON object"),
        ("mine", {"loss_name": "x"}, "setting mine: loss_name"),
        ("mine", {"losses": [{"type": "LovaszLoss"}]}, "setting mine: .*reduction"),
    ):
        with pytest.raises(UsageError, match=message):
            settings([name], {name: options})


def test_a_trial_of_nnunet_refuses_weights_that_nnunet_cannot_learn():
    from dmf_plugins.trials.nnunet import settings

    assert list(settings("a,b", {"mine": {"weighting": "mad"}})) == ["a", "b", "mine"]
    with pytest.raises(UsageError, match=r"setting mine: nnU-Net cannot learn .*'uncertainty'"):
        settings("a", {"mine": {"weighting": "uncertainty"}})
    with pytest.raises(UsageError, match="cannot be called 'a': taken"):
        settings("a", {"a": {}})


@pytest.mark.parametrize(
    "command", [("grid", "x", "--variant"), ("trial", "nnunet", "1", "--setting")]
)
def test_a_setting_given_twice_is_refused(tmp_path, command):
    *start, option = command
    twice = (option, 'a={"weighting": "mad"}', option, 'a={"weighting": "cov"}')
    result = dmf(*start, *twice, "--output", tmp_path / "o")
    assert (result.returncode, f"{option} a is given twice" in result.stderr) == (2, True)


def test_data_that_nnunet_has_not_prepared_are_named(tmp_path, monkeypatch):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from dmf_plugins.trials import nnunet

    for name in nnunet.FOLDERS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("nnUNet_extTrainer", "")
    folder = tmp_path / "Dataset007_X"
    (folder / "nnUNetPlans_2d").mkdir(parents=True)
    configurations = {
        "2d": {"data_identifier": "nnUNetPlans_2d", "architecture": {}},
        "small": {"inherits_from": "2d"},
        "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres", "architecture": {}},
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": configurations}))

    def check(dataset: str, configuration: str) -> None:
        plan = trial(tmp_path / "o", "a")
        plan.settings["a"]["trainer"] = "nnUNetTrainer"
        plan.options = {
            "dataset": dataset, "configuration": configuration, "plans": "nnUNetPlans"
        }  # fmt: skip
        nnunet.check(plan)

    check("7", "2d")
    check("Dataset007_X", "small")
    with pytest.raises(DataError, match=r"nnUNetv2_preprocess -d 7 .* -c 3d_fullres"):
        check("7", "3d_fullres")
    for dataset in ("", str(tmp_path), "²", "8"):
        with pytest.raises(DataError, match="holds 0 data sets"):
            check(dataset, "2d")
