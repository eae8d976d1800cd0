"""Cells, each one training in a process of its own: their state on disk, and many at a time."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dmf_plugins.data.writers import write_json
from dmf_plugins.errors import DataError, DMFError, UsageError

if TYPE_CHECKING:
    from dmf_plugins.trials.plan import Plan

RESULT = "result.json"
FAILED = "failed.txt"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Cell:
    """One training: a setting and a seed or fold.

    Attributes:
        setting: name of the setting, a row of the tables.
        options: what the setting consists of.
        seed: of the data's split, the initial network and the order of the images; or the fold.
        folder: where everything of this cell goes.
    """

    setting: str
    options: dict[str, Any]
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.folder.name}"

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """Whether it has run to its end; a killed cell has no result."""
        return (self.folder / RESULT).is_file()

    @property
    def state(self) -> str:
        """``done``, ``running``, ``failed``, ``stopped`` (begun, killed) or ``todo``."""
        if self.finished:
            return "done"
        if not self.folder.exists():
            return "todo"
        try:
            with self.lock():
                return "failed" if (self.folder / FAILED).exists() else "stopped"
        except DMFError:
            return "running"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while the cell runs; the system lets go of it however the process ends.

        Raises:
            DMFError: another process runs this cell.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.with_name(f".{self.folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DMFError(f"another process is running {self.name}; wait for it") from error
        with lock:
            yield

    def result(self) -> dict[str, Any]:
        """What :meth:`finish` wrote."""
        path = self.folder / RESULT
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it, and the cell runs again"
            ) from error

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, whole; from now on the cell is done."""
        write_json(self.folder / f".{RESULT}", result)
        os.replace(self.folder / f".{RESULT}", self.folder / RESULT)


def unfinished(plan: Plan) -> list[Cell]:
    """The cells still to run."""
    return [cell for cell in plan.cells() if not cell.finished]


def job_commands(plan: Plan) -> list[str]:
    """One command per cell that has not finished, for a scheduler to run anywhere."""
    return [shlex.join(["dmf", *_arguments(plan, cell)]) for cell in unfinished(plan)]


def cell_command(plan: Plan, cell: Cell) -> list[str]:
    """What runs a cell in a process of its own."""
    return [sys.executable, "-m", "dmf_plugins", *_arguments(plan, cell)]


def _arguments(plan: Plan, cell: Cell) -> list[str]:
    # the name, since numbers change when a plan is extended
    return [*plan.command.split(), "--output", str(plan.output), "--cell", cell.name]


def run_one(plan: Plan, which: str, run: Callable[[Cell], object]) -> str:
    """Run a cell, given by number or name, in this process; returns a line about it.

    Raises:
        UsageError: there is no such cell.
    """
    cells = plan.cells()
    names = {str(key): cell for i, cell in enumerate(cells) for key in (i, cell.name)}
    if which not in names:
        raise UsageError(f"--cell must be 0..{len(cells) - 1} or a name such as {cells[0].name}")
    cell = names[which]
    with cell.lock():
        if cell.finished:  # asked here, since another process may have finished it a moment ago
            return f"{cell.name} has finished already"
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / FAILED).unlink(missing_ok=True)
        try:
            run(cell)
        except BaseException as error:
            (cell.folder / FAILED).write_text(f"{type(error).__name__}: {error}\n")
            raise
    return f"finished {cell.name}"


def run_cells(plan: Plan, workers: int) -> None:
    """Run every cell that has not finished, ``workers`` at a time; a failed one does not stop the rest.

    Cores, and GPUs where there are some, are shared out among the workers. The output of each cell
    goes to ``NAME.log`` beside its folder.

    Raises:
        DMFError: cells failed; the message names their logs.
    """
    todo = unfinished(plan)
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
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        with (
            cell.log.open("ab") as stream,
            subprocess.Popen(
                cell_command(plan, cell),
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=_environment(slot, workers),
            ) as process,
        ):
            try:
                while process.poll() is None:
                    bar.update(task, completed=plan.epoch(cell))
                    time.sleep(_POLL_SECONDS)
            finally:
                process.kill()  # does nothing to one that has ended
        with lock:
            slots.append(slot)
            if process.returncode != 0:
                failed.append(cell)
        bar.remove_task(task)
        bar.advance(total, process.returncode == 0)

    try:
        with bar, ThreadPoolExecutor(workers) as pool:
            total = bar.add_task("cells", total=len(todo))
            list(pool.map(run, todo))
    except KeyboardInterrupt:
        bar.console.print("stopped; the same command goes on from the last checkpoints")
        raise
    if failed:
        logs = ", ".join(str(cell.log) for cell in failed)
        raise DMFError(f"{len(failed)} of {len(todo)} cells failed; their output is in {logs}")


def default_workers() -> int:
    """One per GPU, or one per pair of cores."""
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
