"""An nnU-Net from before ``nnUNet_extTrainer``, and ``dmf link-nnunet``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmf_plugins.paths import bundled

nnunetv2 = pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
from typer.testing import CliRunner
from dmf_plugins.cli import app
from dmf_plugins.nnunet.external import find_trainer

def dmf(*command):
    result = CliRunner().invoke(app, command)
    return [result.exit_code, result.output + str(result.exception or "")]

def find():
    return [getattr(find_trainer(name), "__module__", None) for name in NAMES]

steps = [find(), dmf("demo", "--output", "d"), dmf("link-nnunet"), find()]
steps += [dmf("link-nnunet", "--remove"), dmf("link-nnunet", "--remove")]
print(json.dumps(steps))
"""
NAMES = [
    "nnUNetTrainerDMF", "nnUNetTrainerOf_first", "nnUNetTrainerOf_second", "nnUNetTrainer_5epochs",
    "nnUNetTrainerOf_nobody",
]  # fmt: skip
STOCK = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"


@pytest.fixture
def old_nnunet(tmp_path: Path) -> Path:
    """Folder with a copy of the installed nnU-Net that calls itself 2.7.0."""
    package = tmp_path / "site" / "nnunetv2"
    ignore = shutil.ignore_patterns("__pycache__", "zz_external")
    shutil.copytree(nnunetv2.__path__[0], package, ignore=ignore)
    about = tmp_path / "site" / "nnunetv2-2.7.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.7.0\n")
    return package.parent


def test_an_older_nnunet_is_taught_the_variable(old_nnunet, tmp_path):
    """By nnU-Net's finder of that time, which is still part of the later ones."""
    for folder, parent, origin in (
        ("first", "nnUNetTrainer", STOCK),
        ("second", "nnUNetTrainerDMF", "dmf_plugins.nnunet"),
    ):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "__init__.py").touch()
        (tmp_path / folder / "deep" / "mine.py").write_text(
            f"from {origin} import {parent}\n"
            f"class nnUNetTrainerOf_{folder}({parent}): pass\n"
            f"class nnUNetTrainer_5epochs({parent}): pass\n"
        )
    folders = [str(bundled("nnunet_trainers")), str(tmp_path / "first"), str(tmp_path / "second")]
    result = subprocess.run(
        [sys.executable, "-c", f"NAMES = {NAMES}{SCRIPT}"],
        env={
            **os.environ,
            "PYTHONPATH": str(old_nnunet),
            "nnUNet_extTrainer": os.pathsep.join(folders),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    before, demo, link, after, removed, again = json.loads(result.stdout.splitlines()[-1])
    stock = "nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs"
    assert before == [None, None, None, stock, None]
    assert "run: dmf link-nnunet" in demo[1]
    assert not (tmp_path / "d").exists()
    assert link[0] == 0
    assert "zz_external" in link[1]
    # of two equal names nnU-Net's own wins, as in 2.8; two folders may have modules of one name
    assert after == ["dmf_plugins.nnunet.trainers", "deep.mine", "deep.mine", stock, None]
    assert removed[0] == again[0] == 0
    assert "nothing to remove" in again[1]
    assert not list(old_nnunet.rglob("*zz_external*"))
