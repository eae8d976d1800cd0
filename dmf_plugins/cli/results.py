"""Commands that look at results: evaluate, compare, plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dmf_plugins.atomic import check_file, check_target, writing
from dmf_plugins.cli.app import LastArgument, Overwrite, app, one_output, path
from dmf_plugins.errors import UsageError


@app.command(
    epilog="Example: dmf evaluate predictions raw/Dataset501_BUSI/labelsTs --output report"
)
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="PRED", parser=path, help="Folder of predictions.")
    ],
    truth: Annotated[Path, typer.Argument(metavar="GT", parser=path, help="Folder of label maps.")],
    labels: Annotated[
        Optional[str],
        typer.Option(help="Like benign=1,malignant=2, or a dataset.json; default the one near GT."),
    ] = None,
    output: Annotated[
        Optional[Path],
        typer.Option(
            "--output", "-o", parser=path, help="Folder of the report; default none, it is printed."
        ),
    ] = None,
    ignore_index: Annotated[
        Optional[int], typer.Option(help="Label whose pixels do not count.")
    ] = None,
    distances: Annotated[bool, typer.Option(help="Also HD95, ASSD and surface Dice.")] = True,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Of surface Dice, in pixels, of volumes in mm.")
    ] = 1.0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept label maps without a prediction.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap intervals.")] = 0,
    workers: Annotated[
        Optional[int], typer.Option(min=1, help="Processes; default one per core.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a folder of PNG or NIfTI predictions; report as CSV, JSON, Markdown and a picture."""
    from dmf_plugins.metrics.evaluate import evaluate_folders
    from dmf_plugins.metrics.labelmaps import parse_labels
    from dmf_plugins.report.evaluation import evaluation_markdown, write_evaluation

    if output is not None:
        check_target(output, "evaluate", overwrite)
    evaluation = evaluate_folders(
        predictions,
        truth,
        parse_labels(labels, truth),
        ignore_index=ignore_index,
        distances=distances,
        tolerance=tolerance,
        partial=partial,
        seed=seed,
        workers=workers,
        progress=True,
    )
    typer.echo(evaluation_markdown(evaluation), nl=False)
    if output is not None:
        write_evaluation(evaluation, output, overwrite)
        typer.echo(f"wrote {output}")


@app.command(epilog="Example: dmf compare report_dmf report_stock")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", parser=path, help="Reports of dmf evaluate.")
    ],
    score: Annotated[
        str, typer.Option(help="dice, iou, precision, recall, f1 or surface_dice.")
    ] = "dice",
    reference: Annotated[
        Optional[Path], typer.Option(parser=path, help="Compare every run with this one alone.")
    ] = None,
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", parser=path, help="CSV file to write.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Paired Wilcoxon tests between runs on the same images, Holm-corrected."""
    from dmf_plugins.metrics.compare import compare_runs
    from dmf_plugins.report.evaluation import comparison_markdown

    if output is not None:
        check_file(output, overwrite)
    table = compare_runs(runs, score, reference=reference)
    typer.echo(comparison_markdown(table, score), nl=False)
    if output is not None:
        with writing(output, overwrite) as partial:
            table.to_csv(partial, index=False)
        typer.echo(f"wrote {output}")


@app.command(epilog="Example: dmf plot results/fold_0/dmf_log.csv --output weights.svg")
def plot(
    log: Annotated[
        Path,
        typer.Argument(
            parser=path, help="A dmf_log.csv, or the training's folder, which holds it."
        ),
    ],
    last: LastArgument = None,
    output: Annotated[
        Optional[Path],
        typer.Option(
            "--output", "-o", parser=path, help="Picture to write, .png, .svg or .pdf; needed."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw weights, terms and gamma of a training."""
    from dmf_plugins.report.dynamics import plot_dynamics
    from dmf_plugins.report.log import LOG_NAME

    output = one_output(output, last)
    if log.is_dir():
        found = sorted(log.glob("dmf*_log.csv"))  # of several heads, one each
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or f"no {LOG_NAME}"
            raise UsageError(f"{log} holds {names}; name the log of a training")
        log = found[0]
    if not log.is_file():
        raise UsageError(f"{log} does not exist; a training writes {LOG_NAME} into its folder")
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{output} must end in .png, .svg or .pdf")
    with writing(output, overwrite) as partial:
        plot_dynamics(log, partial)
    typer.echo(f"wrote {output}")
