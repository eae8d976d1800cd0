"""The ``dmf`` command as a user calls it: output, messages, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmf_plugins.atomic import claim
from dmf_plugins.report.log import DMFLog

from .support.commands import DMF, dmf, run

COMMANDS = [
    "convert", "filter", "evaluate", "compare", "grid", "export", "doctor", "paths", "copy-configs",
    "plot", "demo",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = dmf(command, "--help")
    assert result.returncode == 0
    assert f"dmf {command}" in result.stdout.split("Example:")[1]


def test_the_installed_command_prints_and_fails_as_its_entry_point_does():
    for arguments in (["paths", "--nnunet"], ["plot", "none", "a.png"]):
        expected = dmf(*arguments)
        command = [sys.executable, DMF, *arguments]
        environment = {**os.environ, "COLUMNS": "200"}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        for name in ("returncode", "stdout", "stderr"):
            assert getattr(result, name) == getattr(expected, name)


def test_help_needs_no_torch():
    code = "import sys, dmf_plugins.cli, dmf_plugins.data; assert 'torch' not in sys.modules"
    run(sys.executable, "-c", code)


def test_convert_filter_and_their_exit_codes(phantoms, tmp_path):
    command = ("convert", "busi", phantoms, "--to", "nnunet", "--dataset-id", 501)
    result = dmf(*command, nnUNet_raw=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "malignant" in result.stdout
    assert "nnUNetv2_train 501 2d 0 -tr nnUNetTrainerDMF" in result.stdout

    again = dmf(*command, nnUNet_raw=str(tmp_path))
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert dmf(*command, "--overwrite", "--size", "64x48", nnUNet_raw=str(tmp_path)).returncode == 0

    no_variable = dmf(*command)
    assert (no_variable.returncode, "export nnUNet_raw=" in no_variable.stderr) == (2, True)
    assert dmf("convert", "busi", phantoms).returncode == 2  # --to is missing
    assert dmf(*command, "--size", "big", "--output", tmp_path / "x").returncode == 2
    (tmp_path / "empty").mkdir()
    nothing = dmf("convert", "busi", tmp_path / "empty", "--to", "nnunet", "--dataset-id", 1,
                  "--output", tmp_path / "y")  # fmt: skip
    assert (nothing.returncode, "no BUSI images" in nothing.stderr) == (1, True)
    assert "Traceback" not in nothing.stderr + again.stderr + no_variable.stderr

    filtered = dmf("filter", phantoms / "benign", tmp_path / "new", "--nnunet")
    assert filtered.returncode == 0
    assert (tmp_path / "new" / "benign (1)_0000.png").exists()
    assert dmf("filter", phantoms / "benign", tmp_path / "new", "--nnunet").returncode == 2


def test_paths_points_at_a_folder_with_one_thin_module():
    result = dmf("paths", "--nnunet")
    assert [p.name for p in Path(result.stdout.strip()).glob("*.py")] == ["dmf.py"]
    assert dmf("paths").returncode == 2


def test_plot_draws_a_log(tmp_path):
    rng = np.random.default_rng(0)
    log = DMFLog(tmp_path / "dmf_log.csv", ["ce", "dice"])
    for epoch in range(3):
        log.append(epoch, rng.random((10, 7)))
    assert dmf("plot", tmp_path, tmp_path / "a.svg").returncode == 0
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert dmf("plot", tmp_path, tmp_path / "a.svg").returncode == 2
    assert dmf("plot", tmp_path, tmp_path / "a.txt").returncode == 2
    assert "does not exist" in dmf("plot", tmp_path / "none", tmp_path / "b.png").stderr


def test_plot_takes_a_folder_of_one_log_and_names_several(tmp_path):
    rows = np.random.default_rng(0).random((10, 7))
    heads = [tmp_path / f"dmf_{head}_log.csv" for head in ("auxiliary_head", "decode_head")]
    assert f"{tmp_path} holds no dmf_log.csv" in dmf("plot", tmp_path, tmp_path / "a.png").stderr
    DMFLog(heads[0], ["ce", "dice"]).append(0, rows)
    assert dmf("plot", tmp_path, tmp_path / "a.png").returncode == 0
    DMFLog(heads[1], ["ce", "dice"]).append(0, rows)
    several = dmf("plot", tmp_path, tmp_path / "b.png")
    assert (several.returncode, heads[0].name + ", " + heads[1].name in several.stderr) == (2, True)


def test_demo_never_empties_a_folder_that_is_not_its_own(phantoms, tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    (tmp_path / "nnUNet_raw").mkdir()
    for options in ([], ["--overwrite"]):
        result = dmf("demo", "--output", tmp_path, *options)
        assert (result.returncode, "was not written by" in result.stderr) == (2, True)
    assert (tmp_path / "nnUNet_raw").exists()
    claim(tmp_path / "earlier", "demo")
    (tmp_path / "earlier" / "demo.png").touch()
    assert "--overwrite replaces it" in dmf("demo", "--output", tmp_path / "earlier").stderr
    inside = dmf("demo", "--output", phantoms.parent, "--data", phantoms, "--overwrite")
    assert (inside.returncode, "lies in" in inside.stderr) == (2, True)
    assert dmf("demo", "--output", tmp_path / "x", "--data", tmp_path / "none").returncode == 2
    assert not (tmp_path / "x").exists()
