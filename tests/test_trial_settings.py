"""What a trial trains, before anything is trained: settings, lengths, cells."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from dmf_plugins.errors import UsageError
from dmf_plugins.trials.engine import Cell, job_commands, run_one
from dmf_plugins.trials.plan import TrialPlan


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
