"""The ``dmf`` command. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import sys

import typer

from dmf_plugins.cli import data, results, setup, training
from dmf_plugins.cli.app import app
from dmf_plugins.errors import DMFError

__all__ = ["app", "data", "main", "results", "setup", "training"]


def main() -> None:
    """Entry point: errors a user can mend are printed without a traceback (exit 1 data, 2 usage)."""
    try:
        app()
    except DMFError as error:
        typer.echo(f"dmf: {error}", err=True)
        sys.exit(error.exit_code)
