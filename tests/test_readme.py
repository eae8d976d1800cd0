"""The README's commands, run as written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The fenced block after ``<!-- test: name -->``."""
    return re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]


def test_the_python_example_runs():
    subprocess.run([sys.executable, "-c", block("python")], check=True, capture_output=True)


@pytest.mark.slow
def test_the_nnunet_commands_run(phantoms, tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    shutil.copytree(phantoms, tmp_path / "Dataset_BUSI_with_GT")
    (tmp_path / "new_images").mkdir()
    for number in (1, 2):
        shutil.copy(phantoms / f"benign/benign ({number}).png", tmp_path / "new_images")
    # what the README says to add without a GPU
    script = re.sub(
        r"^(nnUNetv2_(?:train|predict) .*)$", r"\1 -device cpu", block("nnunet"), flags=re.M
    )
    result = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
            "nnUNet_def_n_proc": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    names = sorted(p.name for p in (tmp_path / "predictions").glob("*.png"))
    assert names == ["benign (1).png", "benign (2).png"]


def test_every_dmf_command_in_the_readme_exists():
    commands = set(re.findall(r"\bdmf (\w+)", README))
    for command in commands:
        script = Path(sysconfig.get_path("scripts")) / "dmf"
        result = subprocess.run(
            [sys.executable, script, command, "--help"], capture_output=True, check=False
        )
        assert result.returncode == 0, command


def test_every_trainer_in_the_readme_exists():
    trainers = pytest.importorskip("dmf_plugins.nnunet", reason="nnU-Net is not installed").TRAINERS
    named = set(re.findall(r"`(nnUNetTrainerDMF\w*)`", README))
    assert named <= set(trainers)
    assert len(trainers) == 15
