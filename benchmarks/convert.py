"""The converter against a bare decode + filter + encode loop, the filter against others, start-up.

python benchmarks/convert.py Dataset_BUSI_with_GT
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from common import heading, interleaved, table

from dmf_plugins.data import bilateral_filter, convert_dataset
from dmf_plugins.data.images import decode_gray

DIAMETER, SIGMA_COLOR, SIGMA_SPACE = 9, 75.0, 75.0


def bare_loop(source: Path, target: Path) -> None:
    """What any script would do with the same pixels: no checks, no split, no manifest."""
    cv2.setNumThreads(1)
    files = [p for c in ("benign", "malignant") for p in sorted((source / c).glob("*.png"))]

    def one(path: Path) -> None:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if "_mask" in path.name:
            image = (image > 127).astype(np.uint8)
        else:
            image = cv2.bilateralFilter(image, DIAMETER, SIGMA_COLOR, SIGMA_SPACE)
        cv2.imwrite(str(target / path.name), image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, files))


def convert_table(source: Path) -> None:
    def convert() -> None:
        with tempfile.TemporaryDirectory() as folder:
            convert_dataset("busi", source, dataset_id=501, output=folder)

    def bare() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bare_loop(source, Path(folder))

    seconds = interleaved({"dmf convert busi": convert, "bare loop": bare}, 5, warmup=1)
    table(
        ["", "median s", "ratio"],
        [[n, f"{s:.2f}", f"{s / seconds['bare loop']:.2f}x"] for n, s in seconds.items()],
    )


def memory_table(source: Path) -> None:
    code = (
        "import sys, resource, tempfile\n"
        "from dmf_plugins.data import convert_dataset\n"
        "with tempfile.TemporaryDirectory() as t: convert_dataset('busi', sys.argv[1], 'mmseg', output=t)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    rows = []
    images = sorted((source / "benign").glob("*).png"))
    for count in (30, 120, len(images)):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "benign"
            part.mkdir()
            for image in images[:count]:
                for file in image.parent.glob(f"{image.stem}*.png"):
                    (part / file.name).symlink_to(file.resolve())
            result = subprocess.run(
                [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
            )
        rows.append([count, f"{int(result.stdout) / 1024:.0f}"])
    table(["images", "peak resident memory, MiB"], rows)


def filter_table(source: Path) -> None:
    path = source / "benign" / "benign (1).png"
    image = decode_gray(path.read_bytes(), str(path))
    jobs = {"dmf_plugins (OpenCV)": lambda: bilateral_filter(image)}
    try:
        from skimage.restoration import denoise_bilateral

        # its images lie in [0, 1]
        jobs["scikit-image"] = lambda: denoise_bilateral(
            image, win_size=DIAMETER, sigma_color=SIGMA_COLOR / 255, sigma_spatial=SIGMA_SPACE
        )
        import SimpleITK

        volume = SimpleITK.GetImageFromArray(image)
        itk = SimpleITK.BilateralImageFilter()
        # its window follows from sigma_space, to 9 pixels as near as it can be set
        itk.SetDomainSigma((DIAMETER - 1) / 2 / 2.5)
        itk.SetRangeSigma(SIGMA_COLOR)
        jobs["SimpleITK (window of 9 by its own sigma)"] = lambda: itk.Execute(volume)
    except ImportError as error:
        print(f"(without {error.name}, which is not installed)\n")
    cv2.setNumThreads(1)
    seconds = interleaved(jobs, 3, warmup=1)
    base = next(iter(seconds.values()))
    size = f"{image.shape[1]}x{image.shape[0]}"
    table(
        [f"bilateral 9/75/75, {size}, one thread", "median ms", "ratio"],
        [[n, f"{1e3 * s:.1f}", f"{s / base:.0f}x"] for n, s in seconds.items()],
    )


def startup_table() -> None:
    rows = []
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "dmf --help": [sys.executable, "-m", "dmf_plugins", "--help"],
        "dmf convert --help": [sys.executable, "-m", "dmf_plugins", "convert", "--help"],
        "dmf paths --nnunet": [sys.executable, "-m", "dmf_plugins", "paths", "--nnunet"],
    }
    for name, command in commands.items():
        times = []
        for _ in range(9):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        rows.append([name, f"{sorted(times)[len(times) // 2]:.2f}"])
    table(["start-up", "median s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="extracted BUSI folder")
    args = parser.parse_args()
    heading("Converter, filter, command line")
    startup_table()
    convert_table(args.data)
    memory_table(args.data)
    filter_table(args.data)
    print(f"(peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB)")


if __name__ == "__main__":
    main()
