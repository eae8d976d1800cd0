"""Commands that make data: convert, filter."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from dmf_plugins.cli.app import LastArgument, Overwrite, Size, app, one_output, parse_size, path


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


@app.command(
    epilog="Example: dmf convert busi Dataset_BUSI_with_GT.zip --to nnunet --dataset-id 501"
)
def convert(
    dataset: Annotated[str, typer.Argument(help="Data set to read: busi, busc or bus.")],
    source: Annotated[Path, typer.Argument(parser=path, help="Folder or zip, as downloaded.")],
    to: Annotated[Framework, typer.Option(help="Framework to write for.")],
    dataset_id: Annotated[
        Optional[int], typer.Option(help="nnU-Net data set number, 1..999.")
    ] = None,
    output: Annotated[
        Optional[Path],
        typer.Option(
            "--output", "-o", parser=path, help="Where to put it; for nnU-Net default $nnUNet_raw."
        ),
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


@app.command("filter", epilog="Example: dmf filter new_images/ --output filtered/ --nnunet")
def filter_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", parser=path, help="Image, or folder of images.")
    ],
    last: LastArgument = None,
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", parser=path, help="PNG file, or folder.")
    ] = None,
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

    output = one_output(output, last)
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
