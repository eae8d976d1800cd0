"""The ``dmf`` command. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from dmf_plugins import __version__
from dmf_plugins.errors import DMFError, UsageError

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

    from dmf_plugins.data.atomic import building
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
