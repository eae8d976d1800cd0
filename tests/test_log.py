"""dmf_log.csv survives resumption and crashes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dmf_plugins.errors import DataError
from dmf_plugins.report.dynamics import plot_dynamics
from dmf_plugins.report.log import DMFLog, read_log


def rows(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((steps, 7))


def test_resuming_continues_the_file_where_the_checkpoint_was(tmp_path):
    log = DMFLog(tmp_path / "log.csv", ["ce", "dice"])
    for epoch in range(4):
        log.append(epoch, rows(5, epoch))
    resumed = DMFLog(tmp_path / "log.csv", ["ce", "dice"])
    resumed.truncate(2)  # the checkpoint was written after epoch 1
    for epoch in (2, 3):
        resumed.append(epoch, rows(5, epoch))
    table = read_log(tmp_path / "log.csv")
    assert table["step"].tolist() == list(range(20))
    assert table["epoch"].tolist() == [e for e in range(4) for _ in range(5)]
    np.testing.assert_allclose(table["total"][10:15], rows(5, 2)[:, -1], rtol=1e-8)


def test_a_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "log.csv"
    log = DMFLog(path, ["ce", "dice"])
    log.append(0, rows(5))
    path.write_text(path.read_text()[:-40])
    assert len(read_log(path)) == 4
    log.truncate(1)
    assert len(pd.read_csv(path)) == 4


def test_a_step_that_was_not_a_number_stays_in_the_log(tmp_path):
    log = DMFLog(tmp_path / "log.csv", ["ce", "dice"])
    steps = rows(5)
    steps[2:, [0, -1]] = np.nan
    log.append(0, steps)
    log.truncate(1)
    assert (log.steps, len(read_log(log.path))) == (5, 5)


def test_a_log_of_other_terms_is_kept_aside(tmp_path):
    DMFLog(tmp_path / "log.csv", ["ce", "dice"]).append(0, rows(2))
    DMFLog(tmp_path / "log.csv", ["ce", "iou", "dice"]).truncate(1)
    assert not (tmp_path / "log.csv").exists()
    assert len(pd.read_csv(tmp_path / "log.old.csv")) == 2


def test_a_fresh_training_starts_the_file_anew(tmp_path):
    DMFLog(tmp_path / "log.csv", ["ce", "dice"]).append(0, rows(2))
    DMFLog(tmp_path / "log.csv", ["ce", "dice"]).truncate(0)
    assert len(pd.read_csv(tmp_path / "log.csv")) == 0


def test_the_picture_is_drawn_whatever_style_the_process_has(tmp_path):
    import matplotlib

    log = DMFLog(tmp_path / "log.csv", ["ce", "dice"])
    log.append(0, rows(3000))
    plot_dynamics(log.path, tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 40, "lines.linewidth": 20}):
        plot_dynamics(log.path, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


HEAD = "epoch,step,value_ce,weight_ce,auxiliary,gamma,total\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.csv is not a dmf_log"),
        (b"\n\n", r"x\.csv is not a dmf_log"),
        (b"\xff\xfe\0\0", r"x\.csv is not a dmf_log"),
        (b"a,b\n1,2\n", r"x\.csv is not a dmf_log.*lacks the columns epoch, step"),
        (b"epoch,gamma\n1,2\n", r"x\.csv is not a dmf_log.*weight_NAME"),
        (HEAD.replace("weight_ce,", "").encode() + b"0,0,1,,5,1\n", "weight_ce"),
        (HEAD.encode(), r"x\.csv holds no step yet"),
        (HEAD.encode() + b"0,0,a,1,,5,1\n", r"x\.csv is damaged: value_ce"),
    ],
)
def test_another_file_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_log(path)
    with pytest.raises(DataError, match=message):  # dmf plot prints it without a traceback
        plot_dynamics(path, tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\0\0", b"epoch,st"])
def test_a_training_continues_whatever_a_crash_left_of_its_log(content, tmp_path):
    log = DMFLog(tmp_path / "log.csv", ["ce", "dice"])
    log.path.write_bytes(content)
    log.truncate(1)
    log.append(1, rows(3))
    assert read_log(log.path)["step"].tolist() == [0, 1, 2]
    aside = tmp_path / "log.old.csv"
    assert aside.read_bytes() == content if content else not aside.exists()
