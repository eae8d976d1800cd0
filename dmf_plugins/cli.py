"""The ``dmf`` command. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from dmf_plugins import __version__
from dmf_plugins.errors import DMFError, UsageError

if TYPE_CHECKING:
    from dmf_plugins.grid.plan import GridPlan

app = typer.Typer(
    name="dmf",
    help="Dynamic Memory Fusion for nnU-Net v2 and MMSegmentation.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


class Framework(str, Enum):
    """Target format of the converter."""

    nnunet = "nnunet"
    mmseg = "mmseg"


class Labels(str, Enum):
    """Label scheme of the converter."""

    lesion = "lesion"
    benign_malignant = "benign-malignant"


Diameter = Annotated[int, typer.Option(help="Bilateral filter: neighbourhood width, odd, pixels.")]
SigmaColor = Annotated[float, typer.Option(help="Bilateral filter: sigma_r, grey levels.")]
SigmaSpace = Annotated[float, typer.Option(help="Bilateral filter: sigma_s, pixels.")]
Size = Annotated[Optional[str], typer.Option(help="Resize to WIDTHxHEIGHT or a square, e.g. 128.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"dmf-plugins {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Example: dmf convert busi Dataset_BUSI_with_GT.zip --to nnunet --dataset-id 501"
)
def convert(
    dataset: Annotated[str, typer.Argument(help="Data set to read: busi, busc or bus.")],
    source: Annotated[Path, typer.Argument(help="Folder or zip, as downloaded.")],
    to: Annotated[Framework, typer.Option(help="Framework to write for.")],
    dataset_id: Annotated[
        Optional[int], typer.Option(help="nnU-Net data set number, 1..999.")
    ] = None,
    output: Annotated[
        Optional[Path], typer.Option(help="Where to put it; for nnU-Net default $nnUNet_raw.")
    ] = None,
    labels: Annotated[Labels, typer.Option(help="One lesion class, or two.")] = Labels.lesion,
    include_normal: Annotated[
        bool, typer.Option("--include-normal", help="Also take images without a lesion.")
    ] = False,
    bilateral: Annotated[bool, typer.Option(help="Filter speckle, as the paper does.")] = True,
    diameter: Diameter = 9,
    sigma_color: SigmaColor = 75.0,
    sigma_space: SigmaSpace = 75.0,
    size: Size = None,
    threshold: Annotated[
        int, typer.Option(help="Lesion where the mask exceeds this grey value, 0..254.")
    ] = 127,
    seed: Annotated[int, typer.Option(help="Of the 70/15/15 split.")] = 0,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave spoilt cases out instead of stopping.")
    ] = False,
    workers: Annotated[Optional[int], typer.Option(help="Threads; default one a core.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a breast-ultrasound data set, split 70/15/15 without leakage of near duplicates.

    Writes manifest.csv (case, class, split, source, checksum) and preview.png with the data.
    """
    from rich.console import Console

    from dmf_plugins.data import BilateralParameters, convert_dataset

    result = convert_dataset(
        dataset,
        source,
        to.value,
        dataset_id=dataset_id,
        output=output,
        labels=labels.value,
        include_normal=include_normal,
        bilateral=BilateralParameters(diameter, sigma_color, sigma_space) if bilateral else None,
        size=parse_size(size),
        threshold=threshold,
        seed=seed,
        skip_invalid=skip_invalid,
        overwrite=overwrite,
        workers=workers,
        progress=True,
    )
    console = Console()
    console.print(result.table())
    for remark in result.remarks:
        console.print(f"note: {remark}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {result.target}", markup=False, highlight=False, soft_wrap=True)
    console.print("next:")
    for step in result.next_steps:
        console.print(f"  {step}", markup=False, highlight=False, soft_wrap=True)


@app.command("filter", epilog="Example: dmf filter new_images/ filtered/ --nnunet")
def filter_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Image, or folder of images.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="PNG file, or folder.")],
    diameter: Diameter = 9,
    sigma_color: SigmaColor = 75.0,
    sigma_space: SigmaSpace = 75.0,
    size: Size = None,
    nnunet: Annotated[
        bool, typer.Option("--nnunet", help="Name outputs *_0000.png for nnUNetv2_predict.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Filter images the way the converter does, before predicting on them."""
    from dmf_plugins.data import BilateralParameters, filter_images

    written = filter_images(
        source,
        output,
        bilateral=BilateralParameters(diameter, sigma_color, sigma_space),
        size=parse_size(size),
        nnunet=nnunet,
        overwrite=overwrite,
        progress=True,
    )
    typer.echo(f"wrote {len(written)} image(s) to {output}")


@app.command(epilog="Example: dmf evaluate predictions raw/Dataset501_BUSI/labelsTs --out report")
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Folder of predictions.")],
    truth: Annotated[Path, typer.Argument(metavar="GT", help="Folder of label maps.")],
    labels: Annotated[
        Optional[str],
        typer.Option(help="Like benign=1,malignant=2, or a dataset.json; default the one near GT."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder of the report.")] = None,
    ignore_index: Annotated[
        Optional[int], typer.Option(help="Label whose pixels do not count.")
    ] = None,
    distances: Annotated[bool, typer.Option(help="Also HD95 and ASSD.")] = True,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept label maps without a prediction.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals.")] = 0,
    workers: Annotated[Optional[int], typer.Option(help="Processes; default one a core.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a folder of PNG or NIfTI predictions; report as CSV, JSON, Markdown and a picture."""
    from dmf_plugins.metrics.evaluate import evaluate_folders
    from dmf_plugins.metrics.labelmaps import parse_labels
    from dmf_plugins.report.evaluation import (
        check_report_folder,
        evaluation_markdown,
        write_evaluation,
    )

    if out is not None:
        check_report_folder(out, overwrite)
    evaluation = evaluate_folders(
        predictions,
        truth,
        parse_labels(labels, truth),
        ignore_index=ignore_index,
        distances=distances,
        partial=partial,
        seed=seed,
        workers=workers,
        progress=True,
    )
    typer.echo(evaluation_markdown(evaluation), nl=False)
    if out is not None:
        write_evaluation(evaluation, out, overwrite)
        typer.echo(f"wrote {out}")


@app.command(epilog="Example: dmf compare report_dmf report_stock")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Reports of dmf evaluate.")],
    score: Annotated[str, typer.Option(help="dice, iou, precision, recall or f1.")] = "dice",
    reference: Annotated[
        Optional[Path], typer.Option(help="Compare every run with this one alone.")
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="CSV file to write.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Paired Wilcoxon tests between runs on the same images, Holm-corrected."""
    from dmf_plugins.metrics.compare import compare_runs
    from dmf_plugins.report.evaluation import comparison_markdown

    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"{out} exists; --overwrite replaces it")
    table = compare_runs(runs, score, reference=reference)
    typer.echo(comparison_markdown(table, score), nl=False)
    if out is not None:
        table.to_csv(out, index=False)
        typer.echo(f"wrote {out}")


@app.command(epilog='Example: export nnUNet_extTrainer="$(dmf paths --nnunet)"')
def paths(
    nnunet: Annotated[
        bool, typer.Option("--nnunet", help="Folder for the variable nnUNet_extTrainer.")
    ] = False,
    mmseg: Annotated[
        bool, typer.Option("--mmseg", help="Folder of the MMSegmentation configs.")
    ] = False,
) -> None:
    """Print where the trainers or the configs live."""
    from dmf_plugins.paths import bundled

    if nnunet == mmseg:
        raise UsageError("say which path: dmf paths --nnunet, or dmf paths --mmseg")
    typer.echo(bundled("nnunet_trainers" if nnunet else "mmseg_configs"))


@app.command("copy-configs", epilog="Example: dmf copy-configs my_project/dmf_configs")
def copy_configs(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    overwrite: Overwrite = False,
) -> None:
    """Copy the MMSegmentation configs next to your own, to inherit from by a relative path."""
    import shutil

    from dmf_plugins.atomic import building
    from dmf_plugins.paths import bundled

    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; --overwrite replaces it")
    with building(output) as folder:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(bundled("mmseg_configs"), folder, dirs_exist_ok=True, ignore=ignore)
    typer.echo(f"wrote {output}")


@app.command(epilog="Example: dmf plot results/fold_0/dmf_log.csv weights.svg")
def plot(
    log: Annotated[Path, typer.Argument(help="A dmf_log.csv, or the folder it is in.")],
    output: Annotated[Path, typer.Argument(help="Picture to write: .png, .svg or .pdf.")],
    overwrite: Overwrite = False,
) -> None:
    """Draw weights, terms and gamma of a training."""
    from dmf_plugins.report.dynamics import plot_dynamics
    from dmf_plugins.report.log import LOG_NAME

    if log.is_dir():
        log = log / LOG_NAME
    if not log.is_file():
        raise UsageError(f"{log} does not exist; training writes it beside progress.png")
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{output} must end in .png, .svg or .pdf")
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; --overwrite replaces it")
    plot_dynamics(log, output)
    typer.echo(f"wrote {output}")


@app.command(epilog="Example: dmf demo --data Dataset_BUSI_with_GT.zip --output demo")
def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, model and figure.")] = Path("demo"),
    data: Annotated[
        Optional[Path], typer.Option(help="BUSI folder or zip; default generated phantoms.")
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
        Optional[Path], typer.Argument(help="Folder or zip; not needed for a grid begun earlier.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the grid; finished cells stay.")] = Path(
        "grid"
    ),
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
        int, typer.Option(help="Repetitions; each a split and an initial network.")
    ] = 10,
    epochs: Annotated[int, typer.Option(help="Length of a training.")] = 100,
    size: Annotated[int, typer.Option(help="Image side, pixels.")] = 128,
    filters: Annotated[int, typer.Option(help="Filters of the U-Net's first stage.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 12,
    cfg_options: Annotated[
        Optional[list[str]],
        typer.Option(help="KEY=JSON merged into the MMSegmentation config; repeatable."),
    ] = None,
    workers: Annotated[
        Optional[int], typer.Option(help="Cells at a time; default one a GPU or two cores.")
    ] = None,
    jobs: Annotated[
        bool, typer.Option("--jobs", help="Print one command a cell, for a scheduler, and stop.")
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
        if min(seeds, epochs, filters, batch_size) < 1 or size < 16:
            raise UsageError(
                "seeds, epochs, filters and batch size must be positive, size 16 or more"
            )
        variants = parse(variant, "--variant")
        if not all(isinstance(v, dict) for v in variants.values()):
            raise UsageError("--variant must be NAME={...}, a JSON object of DMFLoss options")
        plan = make_plan(
            GridPlan(
                output=output,
                dataset=dataset,
                data=str(data.resolve()),
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

    for path in write_report(plan):
        typer.echo(f"wrote {path}")


def _grid_cell(plan: GridPlan, which: str) -> None:
    from dmf_plugins.errors import needs

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


@app.command(
    epilog="Example: dmf export nnUNet_results/Dataset501_BUSI/nnUNetTrainerDMF__nnUNetPlans__2d"
)
def export(
    model: Annotated[
        Path, typer.Argument(help="nnU-Net's model folder, or MMSegmentation's work directory.")
    ],
    output: Annotated[
        Optional[Path],
        typer.Argument(help="Folder to write; for nnU-Net default the stock trainer's."),
    ] = None,
    config: Annotated[
        Optional[Path], typer.Option(help="MMSegmentation: config, if not the one left there.")
    ] = None,
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="MMSegmentation: checkpoint, default the best.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy a trained model so that it predicts without this plug-in installed."""
    from dmf_plugins.errors import needs

    if not model.is_dir():
        raise UsageError(f"{model} is not a folder; give a model folder or a work directory")
    if (model / "plans.json").is_file():
        with needs("nnunet"):
            from dmf_plugins.nnunet.export import export_nnunet
        written = export_nnunet(model, output, overwrite=overwrite)
        typer.echo(f"wrote {written}; run it with: nnUNetv2_predict_from_modelfolder -m {written}")
        return
    if output is None:
        raise UsageError("for an MMSegmentation model give the folder to write")
    with needs("mmseg"):
        from dmf_plugins.mmseg.export import export_mmseg
    export_mmseg(model, output, config=config, checkpoint=checkpoint, overwrite=overwrite)
    typer.echo(f"wrote {output}/config.py and {output}/model.pth")


@app.command(epilog="Example: dmf doctor")
def doctor(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the findings for a script.")
    ] = False,
) -> None:
    """Check this installation; say what is wrong and the command that mends it (exit code 1)."""
    from dmf_plugins.doctor import as_json, examine, is_broken

    findings = []
    if json_output:
        findings = list(examine())
        typer.echo(as_json(findings))
    else:
        signs = {"ok": "ok     ", "warning": "warning", "error": "ERROR  ", "skipped": "-      "}
        for finding in examine():
            findings.append(finding)
            typer.echo(f"{signs[finding.status]}  {finding.check}: {finding.detail}")
            if finding.fix:
                typer.echo(f"           {finding.fix}")
    if is_broken(findings):
        raise typer.Exit(1)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``'128'`` or ``'160x120'`` -> (width, height); raises ``UsageError`` on anything else."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise UsageError(f"--size must be WIDTHxHEIGHT or one number, got {text!r}")
    return int(parts[0]), int(parts[-1])


def main() -> None:
    """Entry point: errors a user can mend are printed without a traceback (exit 1 data, 2 usage)."""
    try:
        app()
    except DMFError as error:
        typer.echo(f"dmf: {error}", err=True)
        sys.exit(error.exit_code)
