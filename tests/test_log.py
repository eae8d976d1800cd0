"""dmf_log.csv survives resumption and crashes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

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
    log.truncate(1)
    assert len(pd.read_csv(path)) == 4


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


def test_another_file_is_refused_by_name(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv is not a dmf_log"):
        read_log(tmp_path / "x.csv")
