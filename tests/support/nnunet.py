"""nnU-Net's folders with a small data set and a shrunken plan, and its commands run in them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from dmf_plugins.paths import bundled

from .forked import forked

CONFIGURATION = "2d_tiny"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAINERS = Path(__file__).parents[1] / "nnunet"


@dataclass
class Workspace:
    """nnU-Net's three folders, and its commands run in them."""

    root: Path

    def __post_init__(self) -> None:
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        ours = str(bundled("nnunet_trainers"))  # what `dmf paths --nnunet` prints
        return {
            **os.environ,
            **{name: str(self.root / name) for name in FOLDERS},
            "nnUNet_extTrainer": os.pathsep.join((ours, str(TRAINERS))),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "0",  # augmentation in the process itself can be seeded
            "nnUNet_compile": "f",
        }

    @property
    def images(self) -> Path:
        return self.root / "nnUNet_raw" / "Dataset501_BUSI" / "imagesTs"

    def run(
        self, command: str, *arguments: object, code: int | None = 0, **environment: str
    ) -> str:
        return forked(command, *arguments, code=code, **{**self.environment, **environment})

    def prepare(self, dataset: int, *options: str) -> str:
        """Plan and preprocess, with one process for each."""
        one = ("-c", "2d", "-np", 1, "-npfp", 1)
        log = self.run(
            "nnUNetv2_plan_and_preprocess", "-d", dataset, *one, *options, nnUNet_n_proc_DA="1"
        )
        (folder,) = (self.root / "nnUNet_preprocessed").glob(f"Dataset{dataset}_*")
        shrink(folder / "nnUNetPlans.json")
        return log

    def train(self, trainer: str, *arguments: object, dataset: int = 501, **options) -> str:
        return self.run(
            "nnUNetv2_train",
            *(dataset, CONFIGURATION, 0, "-tr", trainer, "-device", "cpu", *arguments),
            **options,
        )

    def fold(self, trainer: str, dataset: str = "Dataset501_BUSI") -> Path:
        model = f"{trainer}__nnUNetPlans__{CONFIGURATION}"
        return self.root / "nnUNet_results" / dataset / model / "fold_0"


def shrink(path: Path) -> None:
    """Add a configuration with three stages of few channels to a plan, and its 3-D like."""
    plans = json.loads(path.read_text())
    architecture = json.loads(json.dumps(plans["configurations"]["2d"]["architecture"]))
    kwargs = architecture["arch_kwargs"]
    kwargs.update(
        n_stages=3,
        features_per_stage=[8, 16, 32],
        kernel_sizes=[[3, 3]] * 3,
        strides=[[1, 1], [2, 2], [2, 2]],
        n_conv_per_stage=[1, 1, 1],
        n_conv_per_stage_decoder=[1, 1],
    )
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "2d",
        "architecture": architecture,
        "patch_size": [64, 64],
        "batch_size": 2,
    }
    volumetric = json.loads(json.dumps(architecture).replace("2d", "3d"))
    volumetric["arch_kwargs"].update(
        kernel_sizes=[[3, 3, 3]] * 3, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    )
    plans["configurations"]["3d_tiny"] = {
        "inherits_from": CONFIGURATION,
        "architecture": volumetric,
        "patch_size": [32, 32, 32],
    }
    path.write_text(json.dumps(plans))


@pytest.fixture(scope="session")
def workspace(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The phantoms preprocessed, once for all of xdist's workers; each worker has a copy."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    prepared = shared / "nnunet-prepared"
    with FileLock(prepared.with_suffix(".lock")):
        if not (prepared / "ready").exists():
            shutil.rmtree(prepared, ignore_errors=True)
            space = Workspace(prepared)
            space.run("dmf", "convert", "busi", phantoms, "--to", "nnunet", "--dataset-id", 501)
            log = space.prepare(501, "--verify_dataset_integrity")
            assert "verify_dataset_integrity Done" in log
            (prepared / "ready").touch()
    root = tmp_path_factory.mktemp("nnunet") / "workspace"
    return Workspace(Path(shutil.copytree(prepared, root)))
