"""One recorder for both frameworks: what it keeps, writes and says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dmf_plugins import DMFLoss
from dmf_plugins.report import recorder
from dmf_plugins.report.recorder import Recorder

EPOCH = 5


class Training:
    """A loss on random batches with its recorder, and what the recorder said."""

    def __init__(self, folder: Path, *, main: bool = True, **options: Any) -> None:
        torch.manual_seed(0)
        self.loss = DMFLoss(("ce", "dice"), **{"memory_size": 8, "min_history": 2, **options})
        self.said: list[str] = []
        self.warned: list[str] = []
        self.recorder = Recorder(
            self.loss,
            folder,
            say=self.said.append,
            warn=self.warned.append,
            main=main,
            epoch_steps=EPOCH,
        )

    def step(self, scale: float = 1.0) -> float:
        logits, target = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
        total = self.loss(logits * scale, target)
        self.recorder.remember()
        return total.item()

    def epoch(self, number: int, steps: int = EPOCH) -> pd.DataFrame:
        for _ in range(steps):
            self.step()
        return self.recorder.flush(number)


def test_every_step_is_logged_and_returned(tmp_path):
    training = Training(tmp_path)
    training.recorder.start(0)
    totals = [training.step() for _ in range(EPOCH)]
    steps = training.recorder.flush(0)
    assert not training.recorder.pending
    training.epoch(1)
    log = pd.read_csv(tmp_path / "dmf_log.csv")
    assert log["epoch"].tolist() == [0] * EPOCH + [1] * EPOCH
    np.testing.assert_allclose(steps["total"], totals, rtol=1e-6)
    np.testing.assert_allclose(log.iloc[:EPOCH, 2:], steps, rtol=1e-6)
    assert training.recorder.flush(2).empty
    training.recorder.draw()
    picture = tmp_path / "dmf_dynamics.png"
    assert picture.stat().st_size > 10_000
    picture.unlink()
    training.recorder.draw()  # two checkpoints of one step: nothing new to see
    assert not picture.exists()
    training.epoch(2)
    training.recorder.draw(final=True)
    assert picture.exists()


def test_a_resumed_training_says_so_and_continues_the_file(tmp_path):
    training = Training(tmp_path)
    training.recorder.start(0)
    assert len(training.said) == 1
    assert "DMF: " in training.said[0]
    training.epoch(0)
    state = training.loss.fusion.state_dict_dmf()
    training.epoch(1)

    resumed = Training(tmp_path)
    resumed.loss.fusion.load_state_dict_dmf(state)
    resumed.recorder.start(1)
    weights = resumed.loss.weights.tolist()
    assert resumed.said[1] == (
        f"DMF: resumed at step 5 with weights ce {weights[0]:.3f}, dice {weights[1]:.3f}"
    )
    resumed.epoch(1)
    log = pd.read_csv(tmp_path / "dmf_log.csv")
    assert log["step"].tolist() == list(range(2 * EPOCH))


def test_skipped_steps_are_told_once(tmp_path):
    training = Training(tmp_path)
    training.recorder.start(0)
    training.step(float("nan"))
    training.step(float("inf"))
    training.epoch(0)
    assert [text[:9] for text in training.warned] == ["2 step(s)"]
    training.epoch(1)
    assert len(training.warned) == 1

    resumed = Training(tmp_path)
    resumed.loss.fusion.load_state_dict_dmf(training.loss.fusion.state_dict_dmf())
    resumed.recorder.start(2)
    resumed.epoch(2)
    assert not resumed.warned


@pytest.mark.parametrize(("share", "warnings"), [(0.995, 1), (0.98, 0)])
def test_one_weight_near_1_for_an_epoch_is_told_once(share, warnings, tmp_path):
    training = Training(tmp_path, weighting="fixed", initial_weights=[share, 1 - share])
    training.epoch(0, EPOCH - 1)  # flushed before the epoch is over, as mmengine's interval does
    assert not training.warned
    for epoch in range(3):
        training.epoch(epoch)
    assert len(training.warned) == warnings
    assert all("ce 0.995, dice 0.005; min_weight" in text for text in training.warned)


def test_the_other_processes_write_and_say_nothing(tmp_path):
    training = Training(tmp_path, main=False, weighting="fixed", initial_weights=[1, 0])
    training.recorder.start(0)
    training.step(float("nan"))
    assert len(training.epoch(0)) == EPOCH + 1
    training.recorder.draw()
    assert not training.said + training.warned
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_only_told(tmp_path):
    training = Training(tmp_path)
    training.epoch(0)
    training.recorder.picture = tmp_path / "gone" / "dmf_dynamics.png"
    training.recorder.draw()
    assert training.warned[0].startswith("dmf_dynamics.png was not drawn: FileNotFoundError")


def test_a_picture_is_drawn_once_a_minute_and_at_the_end(tmp_path, monkeypatch):
    drawn: list[Path] = []
    monkeypatch.setattr(recorder, "plot_dynamics", lambda log, picture: drawn.append(picture))
    now = 0.0
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now)
    training = Training(tmp_path)
    training.recorder.start(0)
    counts = []
    for epoch, seconds in enumerate((0, 30, 59, 61)):
        now = float(seconds)
        training.epoch(epoch)
        training.recorder.draw()
        counts.append(len(drawn))
    training.epoch(4)
    training.recorder.draw(final=True)
    training.recorder.draw(final=True)  # nothing is new
    assert (counts, len(drawn)) == ([1, 1, 1, 2], 3)
