"""The commands and examples of README and documentation, run as written."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image

from dmf_plugins.cli import app
from dmf_plugins.data.phantom import generate_phantoms
from dmf_plugins.paths import bundled

from .support.commands import run
from .support.forked import forked

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT = "\n".join(PAGES.values())
_BLOCK = re.compile(r"<!-- test: ([\w-]+) -->\n```(\w+)\n(.*?)```", re.DOTALL)


def block(name: str) -> str:
    """The one fenced block after ``<!-- test: name -->``, on whatever page it is."""
    (text,) = (text for found, _, text in _BLOCK.findall(TEXT) if found == name)
    return text


@pytest.mark.slow
def test_the_python_examples_run(tmp_path):
    # one process, each in a namespace of its own: importing torch takes longer than all of them
    examples = {n: text for n, kind, text in _BLOCK.findall(TEXT) if kind == "python"}
    del examples["mmseg-config"]  # run by MMSegmentation, below
    assert len(examples) >= 6
    code = f"for n, text in {examples!r}.items(): exec(compile(text, n, 'exec'), {{}})"
    forked("-c", code, cwd=tmp_path)


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_the_evaluation_commands_run(tmp_path):
    truth = np.zeros((32, 32), np.uint8)
    truth[8:20, 8:20] = 1
    for folder, shift in (("truth", 0), ("predictions", 2), ("others", 4)):
        (tmp_path / folder).mkdir()
        for i in range(6):
            moved = np.roll(truth, shift + i, axis=0) if shift else truth
            Image.fromarray(moved).save(tmp_path / folder / f"{i}.png")
    command = "dmf evaluate others truth --labels lesion=1 --out report_of_another_run\n"
    run_block(command + block("evaluate"), tmp_path)
    assert (tmp_path / "report" / "summary.md").exists()


def run_block(script: str, folder: Path) -> None:
    """Run a README script with this environment's commands on the path."""
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    run("bash", "-euc", script, cwd=folder, PATH=path, nnUNet_def_n_proc="1", nnUNet_n_proc_DA="1")


@pytest.mark.slow
def test_the_nnunet_commands_run(tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    # on images this small nnU-Net plans a network that trains in seconds
    phantoms = generate_phantoms(tmp_path, benign=14, malignant=8, normal=3, side=(36, 44), seed=3)
    (tmp_path / "new_images").mkdir()
    for number in (1, 2):
        shutil.copy(phantoms / f"benign/benign ({number}).png", tmp_path / "new_images")
    # what the README says to add without a GPU
    no_gpu = re.compile(r"^(nnUNetv2_(?:train|predict) .*)$", re.MULTILINE)
    script = no_gpu.sub(r"\1 -device cpu", block("nnunet"))
    # eight processes, each of which imports torch, are for more than 20 images
    script = re.sub(r"^(nnUNetv2_plan_.*)$", r"\1 -np 1 -npfp 1", script, flags=re.MULTILINE)
    run_block(script, tmp_path)
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
    (evaluate,) = re.findall(r"^dmf evaluate .*/ann_dir/test.*$", TEXT, re.MULTILINE)
    run_block(evaluate, tmp_path)
    assert (tmp_path / "report" / "summary.md").exists()


def test_the_frameworks_predict_into_folders_of_their_own():
    folders = re.findall(
        r"^(?:nnUNetv2_predict .*-o|python .*--out) (\S+)", PAGES[ROOT / "README.md"], re.MULTILINE
    )
    assert len(folders) == len(set(folders)) == 2


def test_every_dmf_command_in_the_pages_exists():
    named = set(re.findall(r"(?:^|\(|`)dmf ([a-z][\w-]+)", TEXT, re.MULTILINE))
    assert {"convert", "doctor"} <= named <= set(typer.main.get_command(app).commands)


def test_every_config_in_the_pages_exists():
    table = re.findall(r"^\| `([\w{},-]+\.py)` \|", TEXT, re.MULTILINE)
    names = {n for entry in table for n in expand(entry)}
    assert names == {p.name for p in bundled("mmseg_configs").glob("*.py")}


def expand(pattern: str) -> list[str]:
    """Shell brace expansion of one group."""
    match = re.search(r"{(.*)}", pattern)
    if match is None:
        return [pattern]
    return [pattern.replace(match[0], part) for part in match[1].split(",")]


def test_every_trainer_in_the_pages_exists():
    trainers = pytest.importorskip("dmf_plugins.nnunet", reason="nnU-Net is not installed").TRAINERS
    named = set(re.findall(r"`(nnUNetTrainerDMF\w*)`", TEXT))
    assert named <= set(trainers)
    assert len(trainers) == 15
