"""Folders and files that appear whole or not at all, and the mark of the folders we may replace."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from dmf_plugins import __version__
from dmf_plugins.errors import UsageError
from dmf_plugins.paths import is_litter

MARK = ".dmf"


def check_target(target: Path, kind: str, overwrite: bool = False) -> None:
    """Refuse a folder that ``dmf KIND`` may not write: it must be absent, empty, or one it wrote.

    Raises:
        UsageError: it is a file, was written by something else, holds a file that was, or exists and
            ``overwrite`` is off.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{target} is not a folder; choose another")
    if not any(target.iterdir()):
        return
    content = _mark_of(target)
    if content.get("kind") != kind:
        raise UsageError(
            f"{target} is not empty and was not written by this version's 'dmf {kind}', so it is left "
            "alone, --overwrite or not; choose another folder, or move this one away yourself"
        )
    known = content.get("files")
    added = sorted(set(_files(target)).difference(known)) if isinstance(known, list) else []
    if added:
        raise UsageError(
            f"{target / added[0]} was not written by 'dmf {kind}' and would be lost; move it away "
            "yourself, or choose another folder"
        )
    if not overwrite:
        raise UsageError(f"{target} exists; --overwrite replaces it")


def check_file(target: Path, overwrite: bool = False) -> None:
    """Raise ``UsageError`` unless a file may be written to ``target``."""
    if os.path.lexists(target):
        if not target.is_file():
            raise UsageError(f"{target} is not a regular file; choose another")
        if not overwrite:
            raise UsageError(f"{target} exists; --overwrite replaces it")


def check_makeable(folder: Path) -> None:
    """Raise ``UsageError`` unless ``folder`` is one to write in, or can be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(f"cannot write in {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write in {folder}: {there} is not yours to write in")


@contextmanager
def building(target: Path, kind: str, overwrite: bool = False) -> Iterator[Path]:
    """Empty folder beside ``target`` that takes its place on success and vanishes on failure.

    It carries the mark of ``kind``, the command that makes it. Of two runs on one target, the second
    to end fails unless ``overwrite`` is on.

    Raises:
        UsageError: ``target`` may not be replaced (see :func:`check_target`) or cannot be written.
    """
    target = Path(os.path.realpath(target))  # a link stays, what it points to is replaced
    check_target(target, kind, overwrite)
    if target.is_mount():
        raise UsageError(
            f"{target} is a mount point, which cannot be replaced; choose one below it"
        )
    with _beside(target) as folder:
        yield folder
        folder.chmod(0o700 | folder.stat().st_mode)  # a copy of a read-only one is that too
        mark(folder, kind, _files(folder))
        if overwrite and target.exists():
            check_target(target, kind, overwrite)
            _replace(folder, target)
        else:
            os.rename(folder, target)  # fails on a folder that is not empty, so that one run wins


@contextmanager
def writing(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Path of the same suffix that becomes the file ``target`` on success and vanishes on failure.

    Raises:
        UsageError: ``target`` may not be replaced (see :func:`check_file`) or cannot be written.
    """
    target = Path(os.path.realpath(target))
    check_file(target, overwrite)
    with _beside(target) as folder:
        partial = folder / f"{target.stem[:50]}{target.suffix}"  # leaves room to add to a long name
        yield partial
        os.replace(partial, target)


def claim(target: Path, kind: str, overwrite: bool = False) -> None:
    """Make ``target`` an empty, marked folder to work in, where that takes too long to build aside.

    Raises:
        UsageError: ``target`` may not be replaced (see :func:`check_target`).
    """
    check_target(target, kind, overwrite)
    mark(target, kind)  # first, so that a kill leaves a folder we may go on emptying
    for path in target.iterdir():
        if path.name != MARK:
            _remove(path)


def mark(folder: Path, kind: str, files: list[str] | None = None) -> None:
    """Make ``folder``, if need be, one that ``dmf KIND`` may replace while it holds these files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"written by": f"dmf {kind}", "kind": kind, "version": __version__}
    if files is not None:
        content["files"] = files
    (folder / MARK).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _mark_of(folder: Path) -> dict[str, Any]:
    path = folder / MARK
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _files(folder: Path) -> list[str]:
    """What is below ``folder``, but for folders and what programs leave without being asked."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder) for path in found)
    return sorted(
        name.as_posix()
        for name in names
        if not any(is_litter(part) or part == "__pycache__" for part in name.parts)
    )


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Empty folder beside ``target``, removed at the end; first those of killed runs are removed.

    So are the folders above it that were made for a ``target`` that does not come.
    """
    name = ".dmf-partial-{}-" + socket.gethostname() + "-{}"
    folder = target.with_name(name.format(os.getpid(), token_hex(4)))
    made = [path for path in target.parents if not path.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in target.parent.glob(".dmf-partial-*"):
            found = re.fullmatch(name.format("(\\d{1,9})", "\\w+"), path.name)
            if found and not _is_running(int(found[1])):
                _remove(path)
        folder.mkdir()
    except OSError as error:
        why = "not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UsageError(f"cannot write in {target.parent}: {why}") from error
    try:
        yield folder
    except OSError as error:
        where = error.filename
        if isinstance(where, str) and folder not in (Path(where), *Path(where).parents):
            raise
        reason = error.strerror or error
        if isinstance(where, str) and where != str(folder):
            reason = f"{Path(where).name}: {reason}"
        raise UsageError(f"cannot write {target}: {reason}; nothing was changed") from error
    finally:
        _remove(folder)
        with suppress(OSError):  # one is not empty, and so are those above it
            for path in made:
                path.rmdir()


def _replace(folder: Path, target: Path) -> None:
    """Exchange the two; without a system call for it, ``target`` is missing for a moment."""
    if not _exchange(folder, target):
        old = folder.with_name(f"{folder.name}_old")
        os.rename(target, old)
        try:
            os.rename(folder, target)
        except OSError:
            os.rename(old, target)
            raise
        _remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, so that no kill finds neither in place; False where Linux' call
    for it is missing or the file system does not know it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _remove(path: Path) -> None:
    """Remove what can be removed; a link itself, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
