"""From nothing to a segmented image, through nnU-Net's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dmf_plugins.atomic import check_target, claim
from dmf_plugins.data import READERS, convert_dataset
from dmf_plugins.data.convert import Conversion
from dmf_plugins.data.images import decode_gray
from dmf_plugins.data.phantom import generate_phantoms
from dmf_plugins.data.source import Source
from dmf_plugins.errors import DMFError, UsageError
from dmf_plugins.metrics import segmentation_metrics
from dmf_plugins.paths import bundled, lies_in

DATASET_ID = 990
TRAINER = "nnUNetTrainerDMF_Quick"
CONFIGURATION = "2d_demo"
DEVICES = ("cuda", "mps", "cpu")
SIZE = (128, 128)  # the paper's
BATCH_SIZE = 4  # what two CPU cores bear; nnU-Net plans larger batches for a GPU

console = Console()


def run_demo(
    output: Path, *, data: Path | None = None, device: str | None = None, overwrite: bool = False
) -> None:
    """Run the demo in ``output``; ``data`` is a BUSI folder or zip, None generates phantoms.

    Raises:
        UsageError: ``output``, ``data`` or ``device`` is unsuitable, or nnU-Net is not installed.
        DMFError: one of nnU-Net's commands failed.
    """
    start = time.monotonic()
    if not (_scripts() / "nnUNetv2_train").exists():
        raise UsageError("nnU-Net is not installed here; run: pip install 'dmf-plugins[nnunet]'")
    output = Path(os.path.realpath(output))
    if data is not None:
        _check_data(data, output)
    check_target(output, "demo", overwrite)
    device = usable_device(device)
    os.environ["nnUNet_extTrainer"] = str(bundled("nnunet_trainers"))
    from dmf_plugins.cli.data import class_table
    from dmf_plugins.nnunet.finder import find_trainer

    if find_trainer(TRAINER) is None:
        raise UsageError(f"nnU-Net does not find {TRAINER}; dmf doctor says what to do")
    claim(output, "demo", overwrite)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (output / name).mkdir()
        os.environ[name] = str(output / name)

    _headline("1/5 data")
    if data is None:
        data = generate_phantoms(output / "phantoms", progress=True)
        console.print(f"generated phantoms in {data}")
    conversion = convert_dataset("busi", data, dataset_id=DATASET_ID, size=SIZE, progress=True)
    console.print(class_table(conversion.cases))
    _train_and_predict(output, conversion.target, device)
    _headline("5/5 results")
    summary, fold = _score(output, data, conversion)
    seconds = time.monotonic() - start
    summary |= {"seconds": round(seconds), "device": device}
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(
        f"lesion Dice {summary['lesion_dice']:.3f}, lesion IoU {summary['lesion_iou']:.3f} (mean over "
        f"{summary['test_images']} held-out images, after 50 iterations), {seconds:.0f} s in all"
    )
    figure = summary["figure"]
    for name, path in (("figure", figure), ("weights", fold / "dmf_dynamics.png"), ("log", fold)):
        console.print(f"{name}: {path}", soft_wrap=True, highlight=False)


def _train_and_predict(output: Path, raw: Path, device: str) -> None:
    """nnU-Net's own three commands."""
    _headline("2/5 nnUNetv2_plan_and_preprocess")
    _call(
        "nnUNetv2_plan_and_preprocess",
        *("-d", DATASET_ID, "-c", "2d", "-npfp", 2, "-np", 2, "--clean"),
        "--verify_dataset_integrity",
    )
    _add_configuration(output / "nnUNet_preprocessed" / raw.name)
    _headline(f"3/5 nnUNetv2_train -tr {TRAINER} (on {device})")
    _call(
        "nnUNetv2_train",
        *(DATASET_ID, CONFIGURATION, 0, "-tr", TRAINER, "-device", device),
        env=_small(),
    )
    _headline("4/5 nnUNetv2_predict")
    _call(
        "nnUNetv2_predict",
        *("-i", raw / "imagesTs", "-o", output / "predictions", "-d", DATASET_ID),
        *("-c", CONFIGURATION, "-f", 0, "-tr", TRAINER, "-device", device, "-npp", 1, "-nps", 1),
        env=_small(),
    )


def _score(output: Path, data: Path, conversion: Conversion) -> tuple[dict[str, Any], Path]:
    """Scores on the held-out images, drawn, and the folder of the training."""
    raw, predictions = conversion.target, output / "predictions"
    test = [case for case in conversion.cases if case.split == "test"]
    truths, predicted = (
        [_label(folder / f"{case.case_id}.png") for case in test]
        for folder in (raw / "labelsTs", predictions)
    )
    scores = segmentation_metrics(np.stack(predicted), np.stack(truths), 2, aggregate="image")
    lesion = scores.foreground
    model = f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"
    fold = output / "nnUNet_results" / raw.name / model / "fold_0"
    figure = output / "demo.png"
    originals = _originals(data, {case.case_id for case in test})
    _draw(figure, raw, predictions, originals, lesion["dice"], fold)
    summary = {
        "test_images": len(test),
        "lesion_dice": lesion["dice"],
        "lesion_iou": lesion["iou"],
        "figure": str(figure),
    }
    return summary, fold


def usable_device(name: str | None) -> str:
    """A device as nnU-Net's ``-device`` takes it; None for the best there is.

    Raises:
        UsageError: nnU-Net does not know it, or this machine does not have it.
    """
    if name not in (None, *DEVICES):
        raise UsageError(
            f"--device must be {', '.join(DEVICES)}, got {name!r}; choose a GPU by CUDA_VISIBLE_DEVICES"
        )
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if found.get(name or "cuda", True):
        return name or "cuda"
    if name is None:
        return "cpu"
    raise UsageError(f"--device {name}: torch finds none on this machine; use --device cpu")


def _check_data(data: Path, output: Path) -> None:
    if not data.exists():
        raise UsageError(f"{data} does not exist; give a BUSI folder or zip")
    if lies_in(data, output):
        raise UsageError(f"{data} lies in {output}, which the demo empties; move one of them")


def _headline(text: str) -> None:
    console.rule(f"[bold]{text}", align="left")


def _scripts() -> Path:
    return Path(sysconfig.get_path("scripts"))


def _small() -> dict[str, str]:
    """Environment of the training: no compilation, whose start costs more than 50 iterations."""
    return {**os.environ, "nnUNet_compile": "f", "nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2"}


def _call(command: str, *arguments: object, env: dict[str, str] | None = None) -> None:
    line = [str(_scripts() / command), *map(str, arguments)]
    console.print(f"$ {command} {' '.join(map(str, arguments))}", highlight=False, soft_wrap=True)
    result = subprocess.run([sys.executable, *line], env=env, check=False)
    if result.returncode != 0:
        raise DMFError(f"{command} failed with exit code {result.returncode}; its output is above")


def _add_configuration(preprocessed: Path) -> None:
    """Add a configuration that inherits nnU-Net's 2d plan with a batch a CPU can bear."""
    path = preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    batch_size = min(BATCH_SIZE, plans["configurations"]["2d"]["batch_size"])
    plans["configurations"][CONFIGURATION] = {"inherits_from": "2d", "batch_size": batch_size}
    path.write_text(json.dumps(plans, indent=4))


def _label(path: Path) -> np.ndarray:
    return decode_gray(path.read_bytes(), str(path))


def _originals(data: Path, case_ids: set[str]) -> dict[str, np.ndarray]:
    with Source(data) as source:
        return {
            case.case_id: decode_gray(source.read(case.image), source.where(case.image))
            for case in READERS["busi"].read(source).cases
            if case.case_id in case_ids
        }


def _draw(
    path: Path,
    dataset: Path,
    predictions: Path,
    originals: dict[str, np.ndarray],
    dice: float,
    fold: Path,
) -> None:
    from matplotlib.figure import Figure

    from dmf_plugins.report.dynamics import plot_weights
    from dmf_plugins.report.log import LOG_NAME, read_log

    names = list(originals)[:: max(1, len(originals) // 4)][:4]
    figure = Figure(figsize=(10, 2.4 * len(names) + 3), layout="constrained")
    pictures, curve = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.4 * len(names), 3])[
        :, 0
    ]
    titles = ("image", "bilateral filter", "truth", "prediction")
    for row, name in zip(pictures.subplots(len(names), 4, squeeze=False), names, strict=True):
        columns = (
            originals[name],
            _label(dataset / "imagesTs" / f"{name}_0000.png"),
            _label(dataset / "labelsTs" / f"{name}.png"),
            _label(predictions / f"{name}.png"),
        )
        for axes, image, title in zip(row, columns, titles, strict=True):
            is_label = title in ("truth", "prediction")
            axes.imshow(image, cmap="gray", vmin=0, vmax=1 if is_label else 255, aspect="auto")
            axes.set_title(f"{title}" if title != "image" else name, fontsize=9)
            axes.set_axis_off()
    axes = curve.subplots()
    plot_weights(axes, read_log(fold / LOG_NAME))
    axes.set_title(f"DMF weights in training; mean lesion Dice on held-out images {dice:.3f}")
    figure.savefig(path, dpi=110)
