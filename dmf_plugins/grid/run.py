"""Running the cells of a grid, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dmf_plugins.errors import DMFError
from dmf_plugins.grid.plan import Cell, GridPlan, unfinished

_POLL_SECONDS = 1.0


def job_commands(plan: GridPlan) -> list[str]:
    """One command per cell that has not finished, for a scheduler to run anywhere."""
    return [
        f"dmf grid --output {plan.output} --cell {i}  # {cell.name}"
        for i, cell in unfinished(plan.cells())
    ]


def run_cells(plan: GridPlan, workers: int) -> None:
    """Run every cell that has not finished, ``workers`` at a time; a failed one does not stop the rest.

    Cores, and GPUs where there are some, are shared out among the workers. The output of each cell
    goes to ``seedN.log`` beside its folder.

    Raises:
        DMFError: cells failed; the message names their logs.
    """
    todo = [cell for _, cell in unfinished(plan.cells())]
    failed: list[Cell] = []
    slots = list(range(workers))
    lock = threading.Lock()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    def run(cell: Cell) -> None:
        with lock:
            slot = slots.pop()
        task = bar.add_task(cell.name, total=plan.epochs)
        log = cell.folder.with_name(f"{cell.folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dmf_plugins", "grid", "--output", str(plan.output)]
        with (
            log.open("wb") as stream,
            subprocess.Popen(
                [*command, "--cell", cell.name],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=_environment(slot, workers),
            ) as process,
        ):
            try:
                while process.poll() is None:
                    bar.update(task, completed=_epoch(cell.folder / "work" / "dmf_log.csv"))
                    time.sleep(_POLL_SECONDS)
            finally:
                process.kill()  # does nothing to one that has ended
        with lock:
            slots.append(slot)
            if process.returncode != 0:
                failed.append(cell)
        bar.remove_task(task)
        bar.advance(total)

    with bar, ThreadPoolExecutor(workers) as pool:
        total = bar.add_task("cells", total=len(todo))
        list(pool.map(run, todo))
    if failed:
        logs = ", ".join(str(cell.folder.with_name(f"{cell.folder.name}.log")) for cell in failed)
        raise DMFError(f"{len(failed)} of {len(todo)} cells failed; their output is in {logs}")


def default_workers() -> int:
    """One a GPU, or one a pair of cores."""
    gpus = len(_gpus())
    return gpus if gpus else max(1, (os.cpu_count() or 1) // 2)


def _gpus() -> Sequence[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and torch.cuda.is_available():
        return visible.split(",")
    return [str(i) for i in range(torch.cuda.device_count())]


def _environment(slot: int, workers: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    gpus = _gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def _epoch(log: Path) -> int:
    """Epochs a training has logged so far."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 400))
            return int(stream.read().splitlines()[-1].split(b",")[0]) + 1
    except (OSError, IndexError, ValueError):
        return 0
