"""Commands that train: demo, grid."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from dmf_plugins.cli.app import Overwrite, app, parse_json, path
from dmf_plugins.cli.cells import (
    CfgOptions,
    Cluster,
    Jobs,
    OneCell,
    Parallel,
    Report,
    Slurm,
    Wish,
    Workers,
)
from dmf_plugins.errors import needs

if TYPE_CHECKING:
    from dmf_plugins.trials.engine import Cell


@app.command(epilog="Example: dmf demo --data Dataset_BUSI_with_GT.zip --output demo")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, help="Folder for data, model and figure.")
    ] = Path("demo"),
    data: Annotated[
        Optional[Path],
        typer.Option(parser=path, help="BUSI folder or zip; default generated phantoms."),
    ] = None,
    device: Annotated[
        Optional[str], typer.Option(help="cuda, cpu or mps; default the best there is.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert, plan, train, predict and draw, through nnU-Net's own commands. Minutes on a CPU."""
    from dmf_plugins.demo import run_demo

    run_demo(output, data=data, device=device, overwrite=overwrite)


@app.command(
    epilog="Example: dmf grid Dataset_BUSI_with_GT.zip --output grid --seeds 3 --epochs 100"
)
def grid(
    data: Annotated[
        Optional[Path],
        typer.Argument(parser=path, help="Folder or zip; not needed for a grid begun earlier."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=path, help="Folder of the grid; finished cells stay."
        ),
    ] = Path("grid"),
    dataset: Annotated[str, typer.Option(help="busi, busc or bus.")] = "busi",
    rules: Annotated[
        str, typer.Option(help="Weightings, separated by commas.")
    ] = "variance,mad,bayesian",
    auxiliaries: Annotated[
        str, typer.Option(help="Auxiliary losses, separated by commas; none for none.")
    ] = "tversky,focal,cb_dice,none",
    variant: Annotated[
        Optional[list[str]],
        typer.Option(help="A setting of your own, NAME=JSON of DMFLoss options; repeatable."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repetitions; each a split and an initial network.")
    ] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Length of a training.")] = 100,
    size: Annotated[int, typer.Option(min=16, help="Image side, pixels; a multiple of 16.")] = 128,
    filters: Annotated[int, typer.Option(min=1, help="Filters of the U-Net's first stage.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 12,
    folds: Annotated[
        int,
        typer.Option(min=1, help="Of a cross-validation per seed; 1 for a 70/15/15 split."),
    ] = 1,
    include_normal: Annotated[
        bool, typer.Option("--include-normal", help="Also take images without a lesion.")
    ] = False,
    cfg_options: CfgOptions = None,
    workers: Workers = None,
    cluster: Cluster = None,
    parallel: Parallel = 4,
    slurm: Slurm = None,
    jobs: Jobs = False,
    cell: OneCell = None,
    report: Report = False,
) -> None:
    """The paper's experiment with MMSegmentation: rules x auxiliary losses, and fixed weights.

    Cells of a seed share split and initial network. A finished cell is never run again, a killed one
    continues from its checkpoint, and new settings or seeds may be added to a grid. Writes tables 1-3
    (Markdown, CSV, LaTeX), paired tests against fixed weights, and figures 1-5 (PNG, SVG).
    """
    from dmf_plugins.grid.plan import GridPlan, grid_settings

    if data is None:
        plan = GridPlan.load(output)
    else:
        plan = GridPlan(
            output=output,
            dataset=dataset,
            data=os.path.realpath(data),
            settings=grid_settings(
                [r for r in rules.split(",") if r],
                [a for a in auxiliaries.split(",") if a],
                parse_json(variant, "--variant", once=True),
            ),
            seeds=list(range(seeds * folds)),
            epochs=epochs,
            size=size,
            filters=filters,
            batch_size=batch_size,
            folds=folds,
            include_normal=include_normal,
            cfg_options=parse_json(cfg_options, "--cfg-options"),
        ).begin()

    def run(cell: Cell) -> None:
        with needs("mmseg,evaluate"):
            from dmf_plugins.grid.cell import run_cell
        run_cell(plan, cell)

    def write() -> list[str]:
        from dmf_plugins.grid.report import write_report

        return [f"wrote {path}" for path in write_report(plan)]

    wish = Wish(workers, cluster, parallel, slurm, jobs, cell, report)
    wish.fulfil(plan, run, write, partial(plan.prepare_data, progress=True))
