"""Cases -> the folder layout of a framework. One class per framework."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from dmf_plugins.atomic import check_file, check_makeable, writing
from dmf_plugins.data.cases import ConvertedCase, DatasetInfo
from dmf_plugins.data.splits import split_cases
from dmf_plugins.errors import UsageError
from dmf_plugins.paths import bundled
from dmf_plugins.registry import Registry

SPLITS = ("train", "val", "test")


class Writer(Protocol):
    """Where things go in one framework's layout."""

    target: Path

    def check(self, overwrite: bool) -> None:
        """Raise ``UsageError`` if writing would collide with what is there."""

    def image_path(self, case: ConvertedCase) -> str:
        """Image file relative to the data set folder."""

    def label_path(self, case: ConvertedCase) -> str:
        """Label file relative to the data set folder."""

    def write_metadata(
        self, folder: Path, cases: Sequence[ConvertedCase], labels: dict[str, int], seed: int
    ) -> None:
        """Write what the framework needs besides the images, into the unfinished ``folder``."""

    def publish(self, labels: dict[str, int]) -> list[str]:
        """Called once the folder is in place; returns commands to run next."""


WRITERS: Registry[type] = Registry("format", "dmf_plugins.writers", type)


@WRITERS.register("nnunet")
class NnUNetWriter:
    """nnU-Net v2: ``DatasetXXX_NAME/{imagesTr,labelsTr,imagesTs,labelsTs}`` with ``dataset.json``.

    Training and validation cases go to ``imagesTr``; ``splits_final.json`` keeps them apart: fold 0
    is the split of the manifest, folds 1-4 take their validation cases from its training part, so
    that the five folds are a cross-validation without leakage.

    Args:
        info: the data set.
        dataset_id: 1..999.
        output: folder of raw data sets; None takes ``$nnUNet_raw``.

    Raises:
        UsageError: the id is out of range, or neither ``output`` nor ``nnUNet_raw`` is set.
    """

    def __init__(self, info: DatasetInfo, dataset_id: int | None, output: Path | None) -> None:
        if dataset_id is None or not 1 <= dataset_id <= 999:
            raise UsageError(f"--dataset-id must lie in 1..999, got {dataset_id}; for example 501")
        if output is None:
            if not os.environ.get("nnUNet_raw"):
                raise UsageError(
                    "nnUNet_raw is not set; run 'export nnUNet_raw=FOLDER' or give --output FOLDER"
                )
            output = Path(os.environ["nnUNet_raw"])
        self.info = info
        self.prefix = f"Dataset{dataset_id:03d}_"
        self.name = self.prefix + re.sub(r"\W", "", info.title)
        self.target = output.expanduser() / self.name
        preprocessed = os.environ.get("nnUNet_preprocessed")
        self.preprocessed = Path(preprocessed) / self.name if preprocessed else None

    def check(self, overwrite: bool) -> None:
        folders = [self.target.parent]
        folders += [
            Path(os.environ[name])
            for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
            if os.environ.get(name)
        ]
        for folder in folders:
            for other in sorted(folder.glob(f"{self.prefix}*")):
                if other.name != self.name:
                    raise UsageError(
                        f"dataset id {self.prefix[7:10]} is taken by {other}; choose another --dataset-id"
                    )
        splits = self._live_splits()
        if splits is not None:
            check_makeable(splits.parent)
            check_file(splits, overwrite)

    def image_path(self, case: ConvertedCase) -> str:
        return f"{'imagesTs' if case.split == 'test' else 'imagesTr'}/{case.case_id}_0000.png"

    def label_path(self, case: ConvertedCase) -> str:
        return f"{'labelsTs' if case.split == 'test' else 'labelsTr'}/{case.case_id}.png"

    def write_metadata(
        self, folder: Path, cases: Sequence[ConvertedCase], labels: dict[str, int], seed: int
    ) -> None:
        dataset = {
            "channel_names": {"0": "ultrasound"},
            "labels": labels,
            "numTraining": sum(case.split != "test" for case in cases),
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
            "name": self.info.title,
            "reference": self.info.citation,
            "licence": self.info.licence,
            "new_images": self.info.new_images,
        }
        write_json(folder / "dataset.json", dataset)
        write_json(folder / "splits_final.json", five_folds(cases, seed))

    def publish(self, labels: dict[str, int]) -> list[str]:
        source = self.target / "splits_final.json"
        live = self._live_splits()
        number = int(self.prefix[7:10])
        steps = []
        raw, known = self.target.parent, os.environ.get("nnUNet_raw")
        if not known or os.path.realpath(known) != os.path.realpath(raw):
            steps.append(f"export nnUNet_raw={shlex.quote(str(raw.absolute()))}")
        if live is None:
            steps.append(
                "export nnUNet_preprocessed=FOLDER  # it is not set; then, so that nnU-Net uses this "
                f'split:\nmkdir -p "$nnUNet_preprocessed/{self.name}" && '
                f'cp {shlex.quote(str(source))} "$nnUNet_preprocessed/{self.name}/"'
            )
        else:
            stale = [*live.parent.glob("*Plans*"), *live.parent.glob("dataset_fingerprint.json")]
            if stale:  # nnU-Net would plan for the images it measured then
                names = " ".join(shlex.quote(str(path)) for path in sorted(stale))
                steps.append(f"rm -r {names}  # from an earlier conversion")
            with writing(live, overwrite=True) as partial:
                partial.write_bytes(source.read_bytes())
        steps.append(f"nnUNetv2_plan_and_preprocess -d {number} -c 2d --verify_dataset_integrity")
        steps.append(f"nnUNetv2_train {number} 2d 0 -tr nnUNetTrainerDMF")
        return steps

    def _live_splits(self) -> Path | None:
        return None if self.preprocessed is None else self.preprocessed / "splits_final.json"


@WRITERS.register("mmseg")
class MMSegWriter:
    """MMSegmentation: ``NAME/{img_dir,ann_dir}/{train,val,test}/*.png``, labels from 0.

    Args:
        info: the data set.
        dataset_id: must be None; it is nnU-Net's.
        output: folder of data sets; None takes ``data``, where mmseg's configs look.

    Raises:
        UsageError: ``dataset_id`` is given.
    """

    def __init__(self, info: DatasetInfo, dataset_id: int | None, output: Path | None) -> None:
        if dataset_id is not None:
            raise UsageError("--dataset-id belongs to --to nnunet; for mmseg leave it out")
        self.info = info
        self.target = (Path("data") if output is None else output.expanduser()) / info.title

    def check(self, overwrite: bool) -> None:
        """Nothing but the target can collide."""

    def image_path(self, case: ConvertedCase) -> str:
        return f"img_dir/{case.split}/{case.case_id}.png"

    def label_path(self, case: ConvertedCase) -> str:
        return f"ann_dir/{case.split}/{case.case_id}.png"

    def write_metadata(
        self, folder: Path, cases: Sequence[ConvertedCase], labels: dict[str, int], seed: int
    ) -> None:
        content = {
            "name": self.info.title,
            "classes": list(labels),
            "reduce_zero_label": False,
            "reference": self.info.citation,
            "licence": self.info.licence,
            "new_images": self.info.new_images,
        }
        write_json(folder / "dataset.json", content)

    def publish(self, labels: dict[str, int]) -> list[str]:
        ending = "-128x128.py" if len(labels) == 2 else f"-{len(labels)}class-128x128.py"
        own = f"unet_dmf_{self.info.title.lower()}{ending}"
        config = own if (bundled("mmseg_configs") / own).exists() else f"unet_dmf_busi{ending}"
        command = f'python {_train_script()} "$(dmf paths --mmseg)/{config}"'
        root, steps = self.target, []
        if " " in str(root):
            root = Path("data") / re.sub(r"\W", "", self.info.title)
            there = shlex.quote(str(self.target.absolute()))
            steps.append(f"mkdir -p data && ln -sT {there} {root}  # --cfg-options drops blanks")
        if config != own or root != Path("data") / self.info.title:
            parts = (
                f"{split}_dataloader.dataset.data_root={shlex.quote(str(root))}" for split in SPLITS
            )
            command += f" --cfg-options {' '.join(parts)}"
        return [*steps, command]


def _train_script() -> str:
    """MMSegmentation's ``tools/train.py``, where pip put it or as it lies in a checkout."""
    mmseg = find_spec("mmseg")
    folders = (mmseg and mmseg.submodule_search_locations) or []
    scripts = (Path(folder, ".mim", "tools", "train.py") for folder in folders)
    return next((shlex.quote(str(path)) for path in scripts if path.exists()), "tools/train.py")


def five_folds(cases: Sequence[ConvertedCase], seed: int) -> list[dict[str, list[str]]]:
    """nnU-Net's ``splits_final.json``: fold 0 as split, folds 1-4 from its training part."""
    train = [case for case in cases if case.split == "train"]
    folds = [[case.case_id for case in cases if case.split == "val"]]
    groups = [case.cluster for case in train]
    if len(set(groups)) >= 4:
        parts = split_cases([case.category for case in train], groups, [1, 1, 1, 1], seed)
        folds += [
            [c.case_id for c, p in zip(train, parts, strict=True) if p == k] for k in range(4)
        ]
    everyone = sorted(case.case_id for case in cases if case.split != "test")
    return [
        {"train": [c for c in everyone if c not in set(val)], "val": sorted(val)} for val in folds
    ]


def write_json(path: Path, content: object) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
