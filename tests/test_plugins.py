"""A package of somebody else's that brings a data set, a format, a rule and a loss by entry points."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmf_plugins.data.phantom import phantom

from .support.commands import run

pytestmark = pytest.mark.slow
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


USE = """
import sys, torch
from dmf_plugins import DMFLoss
from dmf_plugins.cli import app
assert "clinic_data" not in sys.modules  # nothing is loaded before it is asked for
loss = DMFLoss(["ce", "mean_square"], auxiliary=None, weighting="latest", min_history=2)
for _ in range(3):
    loss(torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8)))
assert loss.weights.isfinite().all() and loss.weights.min() > 0 and loss.weights[0] != loss.weights[1]
app(["convert", "--help"], standalone_mode=False)
convert = ["convert", "clinic", "data", "--output", "out", "--to"]
app([*convert, "nnunet", "--dataset-id", "77"], standalone_mode=False)
app([*convert, "mmseg"], standalone_mode=False)
app([*convert, "flat", "--output", "flat"], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def used(clinic: Path) -> str:
    """What all of the package prints, used in one process in the folder ``clinic``."""
    path = os.pathsep.join([str(clinic / "package"), str(Path(__file__).parents[1])])
    return run(sys.executable, "-c", USE, cwd=clinic, PYTHONPATH=path, COLUMNS="200")


@pytest.mark.parametrize(
    ("folder", "training", "test"),
    [
        ("out/Dataset077_CLINIC", "imagesTr/{}_0000.png", "imagesTs/{}_0000.png"),
        ("out/CLINIC", "img_dir/{split}/{}.png", "img_dir/test/{}.png"),
        ("flat/CLINIC", "{split}/{}.png", "test/{}.png"),
    ],
    ids=["nnunet", "mmseg", "flat"],
)
def test_a_foreign_data_set_converts_by_patient(folder, training, test, clinic, used):
    target = clinic / folder
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
        place = test if row["split"] == "test" else training
        assert (target / place.format(row["case"], split=row["split"])).is_file()


def test_the_folds_do_not_divide_a_patient_either(clinic, used):
    path = clinic / "out" / "Dataset077_CLINIC" / "splits_final.json"
    for fold in json.loads(path.read_text()):
        train, val = ({case.split("_")[0] for case in fold[key]} for key in ("train", "val"))
        assert not train & val


def test_help_lists_it(used):
    assert "bus, busc, busi, clinic." in used
    assert "flat, mmseg, nnunet." in used


@pytest.mark.parametrize(
    "message",
    [
        "data set 'broken' (clinic_data:NOTHING) of clinic-data is left out",
        "data set 'wrong' (clinic_data:latest) of clinic-data is left out: TypeError: it is no DatasetInfo",
        "loss 'function' (clinic_data:latest) of clinic-data is left out",
    ],
)
def test_what_is_broken_is_named(message, used):
    assert message in used
