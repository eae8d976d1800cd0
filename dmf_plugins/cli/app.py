"""The application every module of commands adds to, and options they share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from dmf_plugins import __version__
from dmf_plugins.errors import UsageError

app = typer.Typer(
    name="dmf",
    help="Dynamic Memory Fusion for nnU-Net v2 and MMSegmentation.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    # --out is what some commands said before 0.2
    context_settings={"token_normalize_func": lambda name: "output" if name == "out" else name},
)


def path(text: str) -> Path:
    """A path on the command line; an empty one would be the working directory."""
    if not text:
        raise typer.BadParameter("it is empty; is a variable not set?")
    return Path(text)


# where the output was given before 0.2
LastArgument = Annotated[
    Optional[Path], typer.Argument(metavar="OUT", parser=path, hidden=True, show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what dmf wrote earlier.")]
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
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("the working directory is gone; cd to one that exists") from error


def one_output(output: Path | None, last: Path | None) -> Path:
    """The output, given by option or as last argument; raises ``UsageError`` unless it is one of them."""
    if (output is None) == (last is None):
        raise UsageError("give one output, as --output PATH")
    return output or last  # type: ignore[return-value]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``'128'`` or ``'160x120'`` -> (width, height); raises ``UsageError`` on anything else."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise UsageError(f"--size must be WIDTHxHEIGHT or one number, got {text!r}")
    return int(parts[0]), int(parts[-1])


def parse_json(entries: list[str] | None, option: str, *, once: bool = False) -> dict[str, Any]:
    """``NAME=JSON`` entries of a repeatable option; raises ``UsageError`` on anything else.

    Of a name given twice the last value holds; ``once`` refuses it.
    """
    values: dict[str, Any] = {}
    for entry in entries or []:
        key, _, value = entry.partition("=")
        if once and key in values:
            raise UsageError(f"{option} {key} is given twice; each needs a name of its own")
        try:
            values[key] = json.loads(value)
        except ValueError as error:
            raise UsageError(f"{option} {entry!r} must be NAME=JSON ({error})") from error
    return values
