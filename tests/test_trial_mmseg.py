"""A trial of real MMSegmentation trainings: killed, continued, reported; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("mmseg.models", reason="MMSegmentation does not work", exc_type=ImportError)

from .support.commands import dmf, kill_in_training
from .support.mmseg import TINY

pytestmark = pytest.mark.slow
LOVASZ = {"type": "LovaszLoss", "reduction": "none"}
STOCK = f"""
_base_ = {str(TINY)!r}
model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type="CrossEntropyLoss")))
default_hooks = dict(_delete_=True, logger=dict(type="LoggerHook"))
custom_hooks = []
"""
MAD = {"weighting": "mad", "min_history": 2, "losses": ["ce", LOVASZ], "loss_weight": 0.5}


@pytest.fixture(scope="module")
def done(mmseg_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial killed in its first cell after an epoch, moved, and then run again."""
    output = tmp_path_factory.mktemp("trials") / "before"
    config = output.with_name("stock.py")  # nothing of ours but the data set
    config.write_text(STOCK)
    begin = (
        *("trial", "mmseg", config, "--setting", "stock"),
        *("--setting", f"mad={json.dumps(MAD)}"),
        *("--seeds", 1, "--epochs", 3, "--output", output),
    )
    jobs = dmf(*begin, "--jobs", **mmseg_environment)
    assert len(jobs.stdout.splitlines()) == 2, jobs.stderr
    kill_in_training("mmseg", output / "cells" / "stock" / "seed0", **mmseg_environment)
    output = output.rename(output.with_name("trial"))
    result = dmf("trial", "mmseg", "--output", output, "--workers", 1, **mmseg_environment)
    logs = "".join(p.read_text()[-2500:] for p in output.glob("cells/*/*.log"))
    assert result.returncode == 0, result.stderr + logs
    assert "cells: 2 done" in result.stdout
    return output


def test_a_killed_cell_resumes_and_cells_of_a_seed_begin_alike(done):
    assert "resumed epoch: 1" in (done / "cells/stock/seed0.log").read_text()
    assert not (done / "cells/stock/seed0/work/dmf_log.csv").exists(), "it has no DMFHook"
    log = pd.read_csv(done / "cells/mad/seed0/work/dmf_log.csv")
    assert log["step"].tolist() == list(range(9))
    results = [json.loads(p.read_text()) for p in done.glob("cells/*/*/result.json")]
    assert len({result["initial_weights"] for result in results}) == 1
    assert "mad" in (done / "cells/mad/seed0/config.py").read_text()


def test_the_test_part_is_scored_and_shown(done, mmseg_environment):
    root = Path(mmseg_environment["DMF_TEST_DATA"]) / "BUSI"
    images = {path.name for path in (root / "ann_dir/test").iterdir()}
    assert set(pd.read_csv(done / "cells/mad/seed0/per_image.csv")["image"]) == images
    assert (done / "report.html").read_text().count("data:image/png;base64,") == 6


def test_a_stock_config_that_is_dmf_already_is_told(tmp_path, mmseg_environment):
    result = dmf("trial", "mmseg", TINY, "--output", tmp_path / "t", "--jobs", **mmseg_environment)
    assert result.returncode == 0, result.stderr
    assert "is DMFLoss already; stock is that loss" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model = dict(decode_head=dict(type='X'))", "no model.decode_head.loss_decode"),
        ("model = dict(", "is no config that mmengine reads"),
        ("x = 1", "has no model"),
        (None, "cannot read the config"),
    ],
)
def test_a_config_that_cannot_be_tried_is_named(tmp_path, mmseg_environment, config, message):
    path = tmp_path / "config.py"
    if config is not None:
        path.write_text(f"train_dataloader = test_dataloader = train_cfg = dict()\n{config}\n")
    result = dmf("trial", "mmseg", path, "--output", tmp_path / "t", "--jobs", **mmseg_environment)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "t").exists()
