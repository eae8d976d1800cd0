"""Folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmf_plugins.errors import UsageError


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Empty folder beside ``target`` that replaces it on success and vanishes on failure.

    Leftovers of processes that were killed on this machine are removed first.

    Raises:
        UsageError: the parent folder cannot be written.
    """
    prefix = f".{target.name}.partial-{socket.gethostname()}-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f"{prefix}*"):
            if not _is_running(leftover.name.removeprefix(prefix).split("-")[0]):
                shutil.rmtree(leftover)
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise UsageError(f"cannot write in {target.parent}: {error}") from error
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        if not target.exists():
            os.rename(folder, target)
        else:
            if not _exchange(folder, target):
                old = folder.with_name(folder.name + "-old")
                os.rename(target, old)
                os.rename(folder, target)
                folder = old
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(f"cannot write {target}: {error}; nothing was changed") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, so that no kill finds neither in place; False where Linux' call
    for it is missing or the file system does not know it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
