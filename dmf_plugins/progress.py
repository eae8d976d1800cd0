"""A progress bar on stderr, so that stdout holds results alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, shown: bool, total: int | None = None
) -> Iterable[T]:
    """``items``, with a bar while they are consumed."""
    console = Console(stderr=True)
    return _track(items, description, total=total, disable=not shown, console=console)
