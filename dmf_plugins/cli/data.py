"""Commands that make data: convert, filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.cli.app import LastArgument, Overwrite, Size, app, one_output, parse_size, path
from dmf_plugins.errors import capped

if TYPE_CHECKING:
    from rich.table import Table

    from dmf_plugins.data.cases import ConvertedCase


class Labels(str, Enum):
    """Label scheme of the converter."""

    lesion = "lesion"
    benign_malignant = "benign-malignant"


Bilateral = Annotated[bool, typer.Option(help="Filter speckle, as the paper does.")]
Diameter = Annotated[int, typer.Option(help="Bilateral filter: neighbourhood width, odd, pixels.")]
SigmaColor = Annotated[float, typer.Option(help="Bilateral filter: sigma_r, grey levels.")]
SigmaSpace = Annotated[float, typer.Option(help="Bilateral filter: sigma_s, pixels.")]


class ConvertCommand(TyperCommand):
    """A command whose help lists the data sets and formats there are, other packages' included."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from dmf_plugins.data import READERS, WRITERS

        names = {"dataset": sorted(READERS), "to": sorted(WRITERS)}
        for parameter in self.params:
            if parameter.name in names:
                parameter.help = f"{parameter.help} {', '.join(names[parameter.name])}."  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


@app.command(
    cls=ConvertCommand,
    epilog="Example: dmf convert busi Dataset_BUSI_with_GT.zip --to nnunet --dataset-id 501",
)
def convert(
    dataset: Annotated[str, typer.Argument(help="Data set to read:")],
    source: Annotated[Path, typer.Argument(parser=path, help="Folder or zip, as downloaded.")],
    to: Annotated[str, typer.Option(help="Framework to write for:")],
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
    bilateral: Bilateral = True,
    diameter: Diameter = BilateralParameters.diameter,
    sigma_color: SigmaColor = BilateralParameters.sigma_color,
    sigma_space: SigmaSpace = BilateralParameters.sigma_space,
    size: Size = None,
    threshold: Annotated[
        int, typer.Option(help="Lesion where the mask exceeds this grey value, 0..254.")
    ] = 127,
    seed: Annotated[int, typer.Option(help="Of the 70/15/15 split.")] = 0,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave invalid cases out instead of stopping.")
    ] = False,
    workers: Annotated[Optional[int], typer.Option(help="Threads; default one per core.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a breast-ultrasound data set, split 70/15/15 without leakage of near duplicates.

    Writes manifest.csv (case, class, split, group, source, checksum) and preview.png with the data.
    """
    from rich.console import Console

    from dmf_plugins.data import convert_dataset

    result = convert_dataset(
        dataset,
        source,
        to,
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
    Console().print(class_table(result.cases))
    lines = [f"note: {remark}" for remark in capped(result.remarks)]
    lines += [f"wrote {result.target}", "next:", *(f"  {step}" for step in result.next_steps)]
    lines += ["later, before predicting on other images:", f"  {result.new_images}"]
    for line in lines:
        typer.echo(line)


def class_table(cases: Sequence[ConvertedCase]) -> Table:
    """Number of cases by class and split, to print."""
    from rich.table import Table

    from dmf_plugins.data.writers import SPLITS

    count = Counter((case.category, case.split) for case in cases)
    count.update(("all", case.split) for case in cases)
    table = Table("class", *SPLITS, "all")
    for name in [*sorted({case.category for case in cases}), "all"]:
        numbers = [count[name, split] for split in SPLITS]
        table.add_row(name, *map(str, numbers), str(sum(numbers)))
    return table


@app.command("filter", epilog="Example: dmf filter new_images/ --output filtered/ --nnunet")
def filter_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", parser=path, help="Image, or folder of images.")
    ],
    last: LastArgument = None,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", "-o", parser=path, help="PNG file, or folder; needed."),
    ] = None,
    bilateral: Bilateral = True,
    diameter: Diameter = BilateralParameters.diameter,
    sigma_color: SigmaColor = BilateralParameters.sigma_color,
    sigma_space: SigmaSpace = BilateralParameters.sigma_space,
    size: Size = None,
    nnunet: Annotated[
        bool, typer.Option("--nnunet", help="Name outputs *_0000.png for nnUNetv2_predict.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Filter images the way the converter does, before predicting on them."""
    from dmf_plugins.data import filter_images
    from dmf_plugins.data.filter import masks_beside

    output = one_output(output, last)
    written = filter_images(
        source,
        output,
        bilateral=BilateralParameters(diameter, sigma_color, sigma_space) if bilateral else None,
        size=parse_size(size),
        nnunet=nnunet,
        overwrite=overwrite,
        progress=True,
    )
    masks = masks_beside(source) if source.is_dir() else []
    if masks:
        typer.echo(
            f"note: left out {len(masks)} mask(s), which lie beside their images, such as {masks[0]}"
        )
    typer.echo(f"wrote {len(written)} image(s) to {output}")
