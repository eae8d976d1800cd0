"""What the commands that train many cells share: their options, and what is done with the cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from dmf_plugins.errors import UsageError

if TYPE_CHECKING:
    from dmf_plugins.trials.engine import Cell
    from dmf_plugins.trials.plan import Plan

Workers = Annotated[
    Optional[int],
    typer.Option(min=1, help="Cells at a time; default one per GPU or two cores."),
]
Jobs = Annotated[
    bool, typer.Option("--jobs", help="Print one command per cell, for a scheduler, and stop.")
]
OneCell = Annotated[
    Optional[str],
    typer.Option("--cell", help="Run this one cell, by number or name, and stop."),
]
Report = Annotated[
    bool, typer.Option("--report", help="Write the report of what is finished, and stop.")
]
Cluster = Annotated[
    Optional[str],
    typer.Option(help="Hand the cells to this cluster as one job array, and stop: slurm."),
]
Parallel = Annotated[int, typer.Option(min=1, help="Jobs of the cluster at a time.")]
Slurm = Annotated[
    Optional[list[str]],
    typer.Option(help="KEY=VALUE of sbatch (partition, time in minutes, gpus); repeatable."),
]
CfgOptions = Annotated[
    Optional[list[str]],
    typer.Option(help="KEY=JSON merged into the MMSegmentation config; repeatable."),
]


@dataclass(frozen=True)
class Wish:
    """What to do with the cells, as the options say; without any, run them all and report."""

    workers: int | None
    cluster: str | None
    parallel: int
    slurm: list[str] | None
    jobs: bool
    cell: str | None
    report: bool

    def fulfil(
        self,
        plan: Plan,
        run: Callable[[Cell], object],
        report: Callable[[], list[str]],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the cells, or hand them over, or report.

        Args:
            plan: what there is to run.
            run: one cell, in this process.
            report: writes it and returns the lines to show.
            prepare: what the cells need, before the first.
        """
        from dmf_plugins.trials import engine

        if self.cell is not None:
            typer.echo(engine.run_one(plan, self.cell, run))
            return
        if not self.report:
            prepare()
            if self.jobs:
                typer.echo("\n".join(engine.job_commands(plan)))
                return
            if self.cluster is not None:
                typer.echo(_submit(plan, self.cluster, self.parallel, self.slurm or []))
                return
            engine.run_cells(plan, self.workers or engine.default_workers())
        for line in report():
            typer.echo(line)


def _submit(plan: Plan, cluster: str, parallel: int, slurm: list[str]) -> str:
    from dmf_plugins.trials.cluster import submit

    options = dict(entry.partition("=")[::2] for entry in slurm)
    if not all(options.values()):
        raise UsageError("--slurm must be KEY=VALUE, such as partition=gpu")
    numbers = submit(plan, cluster, parallel, options)
    if not numbers:
        return "every cell has finished; look with --report"
    return f"{len(numbers)} jobs: {' '.join(numbers)}; look with --report"
