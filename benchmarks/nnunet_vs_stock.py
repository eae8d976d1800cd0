"""Held-out lesion Dice of DMF against stock nnU-Net at equal iterations and equal data.

    python benchmarks/nnunet_vs_stock.py Dataset_BUSI_with_GT --work /tmp/bench --epochs 6

Prints a Markdown table. Everything runs through nnU-Net's own commands; augmentation is not seeded
(nnU-Net's is not), so repeat with several --seed before reading anything into small differences.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

from dmf_plugins.data import convert_dataset
from dmf_plugins.data.images import decode_gray
from dmf_plugins.metrics import segmentation_metrics

TRAINERS = ("nnUNetTrainer_Short", "nnUNetTrainerDMF_Short", "nnUNetTrainerDMF_FixedShort")
DATASET_ID = 991


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="BUSI folder or zip")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and models")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of 50 iterations")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the initial network")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    work = args.work.resolve()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = work / (f"{name}_{args.seed}" if name == "nnUNet_results" else name)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    os.environ.update(
        nnUNet_extTrainer=str(Path(__file__).parent / "trainers"),
        nnUNet_compile="f",
        nnUNet_n_proc_DA="2",
        nnUNet_def_n_proc="2",
        BENCH_EPOCHS=str(args.epochs),
        BENCH_SEED=str(args.seed),
    )
    dataset = Path(os.environ["nnUNet_raw"]) / f"Dataset{DATASET_ID}_BUSI"
    plans = Path(os.environ["nnUNet_preprocessed"]) / dataset.name / "nnUNetPlans.json"
    if not dataset.exists():
        convert_dataset("busi", args.data, dataset_id=DATASET_ID, size=(128, 128))
        call("nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "-c", "2d", "-npfp", 2, "-np", 2)
        content = json.loads(plans.read_text())
        content["configurations"]["2d_bench"] = {
            "inherits_from": "2d",
            "batch_size": args.batch_size,
        }
        plans.write_text(json.dumps(content, indent=4))

    print("| trainer | lesion Dice | lesion IoU | test images | iterations | seed |")
    print("|---|---|---|---|---|---|")
    for trainer in TRAINERS:
        common = ("-tr", trainer, "-device", args.device)
        results = Path(os.environ["nnUNet_results"]) / dataset.name
        model = results / f"{trainer}__nnUNetPlans__2d_bench" / "fold_0"
        if not (model / "validation" / "summary.json").exists():
            call("nnUNetv2_train", DATASET_ID, "2d_bench", 0, *common, "--c")
        predictions = work / f"predictions_{args.seed}" / trainer
        call(
            "nnUNetv2_predict",
            *("-i", dataset / "imagesTs", "-o", predictions, "-d", DATASET_ID),
            *("-c", "2d_bench", "-f", 0, "-npp", 1, "-nps", 1, *common),
        )
        truths = sorted((dataset / "labelsTs").glob("*.png"))
        truth, pred = (
            np.stack([decode_gray((folder / t.name).read_bytes(), t.name) for t in truths])
            for folder in (dataset / "labelsTs", predictions)
        )
        score = segmentation_metrics(pred, truth, 2, aggregate="image").lesion
        print(
            f"| {trainer} | {score['dice']:.3f} | {score['iou']:.3f} | {len(truths)} "
            f"| {50 * args.epochs} | {args.seed} |",
            flush=True,
        )


def call(command: str, *arguments: object) -> None:
    """Run one of nnU-Net's commands, its output going to stderr."""
    script = Path(sysconfig.get_path("scripts")) / command
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
