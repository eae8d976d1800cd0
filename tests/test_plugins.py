"""A package of somebody else's that brings a data set, a format, a rule and a loss by entry points."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmf_plugins.data.phantom import phantom

MODULE = '''
"""Clinic: PATIENT_IMAGE.png with PATIENT_IMAGE_seg.png, several images per patient."""
from pathlib import PurePosixPath

import torch

from dmf_plugins.data import Case, DatasetInfo, Reading
from dmf_plugins.data.writers import MMSegWriter


def read(source):
    reading = Reading()
    for name in source.names:
        stem = PurePosixPath(name).stem
        if not stem.endswith("_seg"):
            mask = name.replace(".png", "_seg.png")
            reading.cases.append(Case(stem, "lesion", name, (mask,), group=stem.split("_")[0]))
    return reading


CLINIC = DatasetInfo("CLINIC", read, "Doe J. Clinic (2026).", licence="CC BY 4.0")


class FlatWriter(MMSegWriter):
    def image_path(self, case):
        return f"{case.split}/{case.case_id}.png"

    def label_path(self, case):
        return f"{case.split}/{case.case_id}_label.png"


def latest(window):
    return window.history[-1].log()


class MeanSquare(torch.nn.Module):
    def forward(self, logits, target):
        return (logits.softmax(1)[:, 1] - target).square().mean()
'''
ENTRY_POINTS = """
[dmf_plugins.readers]
clinic = clinic_data:CLINIC
broken = clinic_data:NOTHING
wrong = clinic_data:latest

[dmf_plugins.writers]
flat = clinic_data:FlatWriter

[dmf_plugins.weightings]
latest = clinic_data:latest

[dmf_plugins.losses]
mean_square = clinic_data:MeanSquare
function = clinic_data:latest
"""


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``package`` as pip installs it, and ``data``: 20 patients of 1 to 4 unlike images."""
    root = tmp_path_factory.mktemp("clinic")
    info = root / "package" / "clinic_data-1.0.dist-info"
    info.mkdir(parents=True)
    (root / "package" / "clinic_data.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clinic-data\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (root / "data").mkdir()
    for patient in range(20):
        for number in range(1 + patient % 4):
            image, masks = phantom(np.random.default_rng((patient, number)), 96, 110, True, 1)
            stem = root / "data" / f"p{patient:02d}_{number}"
            Image.fromarray(image).save(f"{stem}.png")
            Image.fromarray(masks[0]).save(f"{stem}_seg.png")
    return root


def run(clinic: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(clinic / "package"), str(Path(__file__).parents[1])])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("to", ["nnunet", "mmseg", "flat"])
def test_a_foreign_data_set_converts_by_patient(clinic, to, tmp_path):
    options = ["--dataset-id", "77"] if to == "nnunet" else []
    arguments = ["convert", "clinic", clinic / "data", "--to", to, "--output", tmp_path, *options]
    result = run(clinic, "-m", "dmf_plugins", *arguments)
    assert result.returncode == 0, result.stderr
    target = next(path for path in tmp_path.iterdir() if path.is_dir())
    with (target / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 50
    splits, groups = defaultdict(set), defaultdict(set)
    for row in rows:
        assert row["patient"] == row["case"].split("_")[0]
        splits[row["patient"]].add(row["split"])
        groups[row["patient"]].add(row["group"])
    assert all(len(found) == 1 for found in [*splits.values(), *groups.values()])
    assert len(set.union(*splits.values())) == 3
    for row in rows:  # each file lies where its format wants it
        places = {
            "nnunet": f"images{'Ts' if row['split'] == 'test' else 'Tr'}/{row['case']}_0000.png",
            "mmseg": f"img_dir/{row['split']}/{row['case']}.png",
            "flat": f"{row['split']}/{row['case']}.png",
        }
        assert (target / places[to]).is_file()
    if to == "nnunet":  # the folds do not divide a patient either
        for fold in json.loads((target / "splits_final.json").read_text()):
            train, val = ({case.split("_")[0] for case in fold[k]} for k in ("train", "val"))
            assert not train & val


def test_help_lists_it_and_what_is_broken_is_named(clinic):
    result = run(clinic, "-m", "dmf_plugins", "convert", "--help")
    assert result.returncode == 0
    assert "bus, busc, busi, clinic." in result.stdout
    assert "flat, mmseg, nnunet." in result.stdout
    assert "data set 'broken' (clinic_data:NOTHING) of clinic-data is left out" in result.stderr
    assert "data set 'wrong'" in result.stderr
    assert "it is no DatasetInfo" in result.stderr


def test_a_foreign_rule_and_loss_train(clinic):
    code = """
import sys, torch
from dmf_plugins import DMFLoss, LOSSES, WEIGHTINGS
assert "clinic_data" not in sys.modules  # nothing is loaded before it is asked for
loss = DMFLoss(["ce", "mean_square"], auxiliary=None, weighting="latest", min_history=2)
for _ in range(3):
    loss(torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8)))
print(loss.weights.tolist(), "mean_square" in LOSSES, "latest" in WEIGHTINGS)
"""
    result = run(clinic, "-c", code)
    assert result.returncode == 0, result.stderr
    assert "True True" in result.stdout
    assert "loss 'function' (clinic_data:latest) of clinic-data is left out" in result.stderr
