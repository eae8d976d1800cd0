"""The application every module of commands adds to, and options they share."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from dmf_plugins import __version__
from dmf_plugins.errors import UsageError

app = typer.Typer(
    name="dmf",
    help="Dynamic Memory Fusion for nnU-Net v2 and MMSegmentation.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Size = Annotated[Optional[str], typer.Option(help="Resize to WIDTHxHEIGHT or a square, e.g. 128.")]


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


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``'128'`` or ``'160x120'`` -> (width, height); raises ``UsageError`` on anything else."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise UsageError(f"--size must be WIDTHxHEIGHT or one number, got {text!r}")
    return int(parts[0]), int(parts[-1])
