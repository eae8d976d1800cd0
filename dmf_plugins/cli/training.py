"""Commands that train: demo, grid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from dmf_plugins.cli.app import Overwrite, app, path
from dmf_plugins.errors import UsageError, needs

if TYPE_CHECKING:
    from dmf_plugins.grid.plan import GridPlan


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
    size: Annotated[int, typer.Option(min=16, help="Image side, pixels.")] = 128,
    filters: Annotated[int, typer.Option(min=1, help="Filters of the U-Net's first stage.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 12,
    cfg_options: Annotated[
        Optional[list[str]],
        typer.Option(help="KEY=JSON merged into the MMSegmentation config; repeatable."),
    ] = None,
    workers: Annotated[
        Optional[int],
        typer.Option(min=1, help="Cells at a time; default one per GPU or two cores."),
    ] = None,
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Print one command per cell, for a scheduler, and stop.")
    ] = False,
    cell: Annotated[
        Optional[str], typer.Option(help="Run this one cell, by number or name, and stop.")
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write tables and figures of what is finished, and stop."),
    ] = False,
) -> None:
    """The paper's experiment with MMSegmentation: rules x auxiliary losses, and fixed weights.

    Cells of a seed share split (70/15/15) and initial network. A finished cell is never run again, a
    killed one starts anew, and new settings or seeds may be added to a grid. Writes tables 1-3
    (Markdown, CSV, LaTeX), paired tests against fixed weights, and figures 1-5 (PNG, SVG).
    """
    import json

    from dmf_plugins.grid.plan import GridPlan, grid_settings, load_plan, make_plan

    def parse(entries: list[str] | None, option: str) -> dict[str, object]:
        values = {}
        for entry in entries or []:
            key, _, value = entry.partition("=")
            try:
                values[key] = json.loads(value)
            except ValueError as error:
                raise UsageError(f"{option} {entry!r} must be NAME=JSON ({error})") from error
        return values

    if data is None:
        plan = load_plan(output)
    else:
        variants = parse(variant, "--variant")
        if not all(isinstance(v, dict) for v in variants.values()):
            raise UsageError("--variant must be NAME={...}, a JSON object of DMFLoss options")
        plan = make_plan(
            GridPlan(
                output=output,
                dataset=dataset,
                data=os.path.realpath(data),
                settings=grid_settings(
                    [r for r in rules.split(",") if r],
                    [a for a in auxiliaries.split(",") if a],
                    variants,  # type: ignore[arg-type]
                ),
                seeds=list(range(seeds)),
                epochs=epochs,
                size=size,
                filters=filters,
                batch_size=batch_size,
                cfg_options=parse(cfg_options, "--cfg-options"),
            )
        )
    if cell is not None:
        _grid_cell(plan, cell)
        return
    if not report:
        plan.prepare_data(progress=True)
        from dmf_plugins.grid.run import default_workers, job_commands, run_cells

        if jobs:
            typer.echo("\n".join(job_commands(plan)))
            return
        run_cells(plan, workers or default_workers())
    from dmf_plugins.grid.report import write_report

    for written in write_report(plan):
        typer.echo(f"wrote {written}")


def _grid_cell(plan: GridPlan, which: str) -> None:
    cells = plan.cells()
    names = {str(key): cell for i, cell in enumerate(cells) for key in (i, cell.name)}
    if which not in names:
        raise UsageError(f"--cell must be 0..{len(cells) - 1} or a name such as {cells[0].name}")
    chosen = names[which]
    if chosen.finished:
        typer.echo(f"{chosen.name} has finished already")
        return
    with needs("mmseg,evaluate"):
        from dmf_plugins.grid.cell import run_cell
    with chosen.lock():
        run_cell(plan, chosen)
    typer.echo(f"finished {chosen.name}")
