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

from dmf_plugins.paths import bundled

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The fenced block after ``<!-- test: name -->``."""
    return re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]


def test_the_python_example_runs():
    subprocess.run([sys.executable, "-c", block("python")], check=True, capture_output=True)


def run_block(script: str, folder: Path) -> None:
    """Run a README script with this environment's commands on the path."""
    result = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
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


@pytest.mark.slow
def test_the_nnunet_commands_run(phantoms, tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    shutil.copytree(phantoms, tmp_path / "Dataset_BUSI_with_GT")
    (tmp_path / "new_images").mkdir()
    for number in (1, 2):
        shutil.copy(phantoms / f"benign/benign ({number}).png", tmp_path / "new_images")
    # what the README says to add without a GPU
    no_gpu = re.compile(r"^(nnUNetv2_(?:train|predict) .*)$", re.MULTILINE)
    run_block(no_gpu.sub(r"\1 -device cpu", block("nnunet")), tmp_path)
    names = sorted(p.name for p in (tmp_path / "predictions").glob("*.png"))
    assert names == ["benign (1).png", "benign (2).png"]


@pytest.mark.slow
def test_the_mmseg_commands_run(phantoms, tmp_path):
    pytest.importorskip("mmseg", reason="MMSegmentation is not installed")
    shutil.copytree(phantoms, tmp_path / "Dataset_BUSI_with_GT")
    config = block("mmseg-config").replace(
        "max_epochs=100, val_interval=5", "max_epochs=2, val_interval=1"
    )
    (tmp_path / "my_config.py").write_text(config)
    run_block(block("mmseg"), tmp_path)
    assert (tmp_path / "work" / "dmf_dynamics.png").exists()


def test_every_dmf_command_in_the_readme_exists():
    commands = set(re.findall(r"(?:^|\(|`)dmf ([\w-]+)", README, re.MULTILINE))
    for command in commands:
        script = Path(sysconfig.get_path("scripts")) / "dmf"
        result = subprocess.run(
            [sys.executable, script, command, "--help"], capture_output=True, check=False
        )
        assert result.returncode == 0, command


def test_every_config_in_the_readme_exists():
    table = re.findall(r"^\| `([\w{},-]+\.py)` \|", README, re.MULTILINE)
    names = {n for entry in table for n in expand(entry)}
    assert names == {p.name for p in bundled("mmseg_configs").glob("*.py")}


def expand(pattern: str) -> list[str]:
    """Shell brace expansion of one group."""
    match = re.search(r"{(.*)}", pattern)
    if match is None:
        return [pattern]
    return [pattern.replace(match[0], part) for part in match[1].split(",")]


def test_every_trainer_in_the_readme_exists():
    trainers = pytest.importorskip("dmf_plugins.nnunet", reason="nnU-Net is not installed").TRAINERS
    named = set(re.findall(r"`(nnUNetTrainerDMF\w*)`", README))
    assert named <= set(trainers)
    assert len(trainers) == 15
