"""What the benchmarks share: interleaved timing, peak memory, Markdown."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "nnunetv2", "monai", "segmentation-models-pytorch", "mmsegmentation",
            "opencv-python", "scikit-image", "simpleitk")  # fmt: skip


def interleaved(
    jobs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3
) -> dict[str, float]:
    """Median seconds of each job, taken turn by turn so that noise hits all alike.

    Each is called once more just before, untimed: otherwise a job that follows a large one pays for
    the pages the large one gave back, and the next finds them ready.
    """
    for _ in range(warmup):
        for job in jobs.values():
            job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            job()
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_extra_bytes(job: Callable[[], object]) -> int:
    """How far the resident memory of this process rises while ``job`` runs (Linux)."""
    job()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # resets the high-water mark
    before = _status("VmRSS")
    job()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(key))


def heading(title: str) -> None:
    """Title, machine and versions."""
    print(f"## {title}\n")
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
          f"{', '.join(found)}\n")  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)
