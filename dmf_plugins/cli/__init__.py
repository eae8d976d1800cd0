"""The ``dmf`` command. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import typer

from dmf_plugins.cli import data, results, setup, training, trial
from dmf_plugins.cli.app import app
from dmf_plugins.errors import DMFError, describe

__all__ = ["app", "data", "main", "results", "setup", "training", "trial"]
_SIGPIPE = 128 + 13  # as a shell reports it


def main() -> None:
    """Entry point: errors a user can fix are printed without a traceback (exit 1 data, 2 usage).

    So is whatever the file system says. A closed pipe, as of ``dmf ... | head -1``, ends as a SIGPIPE.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text
    try:
        app()
    except DMFError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(describe(error), 1)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            sys.exit(_SIGPIPE)
        raise


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"dmf: {message}", err=True)
    sys.exit(code)
