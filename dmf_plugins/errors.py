"""Errors a user can fix. The command line prints their text without a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DMFError(Exception):
    """Base of the errors below; ``exit_code`` is what ``dmf`` returns for it."""

    exit_code = 1


class UsageError(DMFError):
    """An argument, option or environment variable is wrong or missing."""

    exit_code = 2


class DataError(DMFError):
    """An input file is missing, unreadable or contradicts another."""

    exit_code = 1


def describe(error: OSError) -> str:
    """File and reason, as far as the system names them."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def capped(lines: Sequence[str], limit: int = 20) -> list[str]:
    """The first ``limit`` lines, and one that says how many more there are."""
    more = len(lines) - limit
    return [*lines[:limit], *([f"and {more} more"] if more > 0 else [])]


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failed import inside into a ``UsageError`` with the line that installs ``extra``."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; run: pip install 'dmf-plugins[{extra}]'"
        ) from error
