"""A trial of real MMSegmentation trainings: killed, continued, reported; and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("mmseg.models", reason="MMSegmentation does not work", exc_type=ImportError)

from dmf_plugins.data import convert_dataset
from dmf_plugins.paths import bundled

TINY = Path(__file__).parent / "mmseg" / "tiny.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("trialdata")
    convert_dataset("busi", phantoms, "mmseg", output=folder, size=(64, 64))
    return {
        **os.environ,
        "DMF_CONFIGS": str(bundled("mmseg_configs")),
        "DMF_TEST_DATA": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dmf_plugins", "trial", "mmseg", *map(str, arguments)]


@pytest.fixture(scope="module")
def done(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial whose first cell was killed after its first epoch, and the whole then run again."""
    output = tmp_path_factory.mktemp("trials") / "trial"
    begin = command(
        *(TINY, "--setting", "stock", "--setting", 'mad={"weighting": "mad", "min_history": 2}'),
        *("--seeds", 1, "--epochs", 3, "--output", output),
    )
    jobs = subprocess.run(
        [*begin, "--jobs"], env=environment, capture_output=True, text=True, check=False
    )
    assert len(jobs.stdout.splitlines()) == 2, jobs.stderr
    cell = output / "cells" / "stock" / "seed0"
    process = subprocess.Popen(
        command("--output", output, "--cell", 0),
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (cell / "epoch.txt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = subprocess.run(
        command("--output", output, "--workers", 1),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = "".join(p.read_text()[-2500:] for p in output.glob("cells/*/*.log"))
    assert result.returncode == 0, result.stderr + logs
    assert "cells: 2 done" in result.stdout
    return output


def test_a_killed_cell_resumes_and_cells_of_a_seed_begin_alike(done):
    assert "resumed epoch: 1" in (done / "cells/stock/seed0.log").read_text()
    log = pd.read_csv(done / "cells/stock/seed0/work/dmf_log.csv")
    assert log["step"].tolist() == list(range(9))
    results = [json.loads(p.read_text()) for p in done.glob("cells/*/*/result.json")]
    assert len({result["initial_weights"] for result in results}) == 1
    assert "mad" in (done / "cells/mad/seed0/config.py").read_text()


def test_the_test_part_is_scored_and_shown(done, environment):
    root = Path(environment["DMF_TEST_DATA"]) / "BUSI"
    images = {path.name for path in (root / "ann_dir/test").iterdir()}
    assert set(pd.read_csv(done / "cells/mad/seed0/per_image.csv")["image"]) == images
    assert (done / "report.html").read_text().count("data:image/png;base64,") == 6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model = dict(decode_head=dict(type='X'))", "no model.decode_head.loss_decode"),
        ("model = dict(", "is no config that mmengine reads"),
        ("x = 1", "has no model"),
        (None, "cannot read the config"),
    ],
)
def test_a_config_that_cannot_be_tried_is_named(tmp_path, environment, config, message):
    path = tmp_path / "config.py"
    if config is not None:
        path.write_text(f"train_dataloader = test_dataloader = train_cfg = dict()\n{config}\n")
    result = subprocess.run(
        command(path, "--output", tmp_path / "t", "--jobs"),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "t").exists()
