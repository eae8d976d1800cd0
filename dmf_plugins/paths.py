"""Questions about paths, and the folders that travel with the package."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from dmf_plugins.errors import DataError, DMFError

_PACKAGE = Path(__file__).resolve().parent
_LITTER = ("Thumbs.db", "desktop.ini")


def lies_in(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, by any link; unlike ``resolve``, a loop of links is
    no error."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_litter(name: str) -> bool:
    """Whether an operating system left the file of this relative path, as macOS does ``._a.png``."""
    path = PurePosixPath(name)
    return path.name.startswith(".") or path.parts[0] == "__MACOSX" or path.name in _LITTER


def regular(path: Path) -> Path:
    """``path``, if it is a file to read; a pipe or a device would make the reader wait for ever.

    Raises:
        DataError: it is none.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; remove or replace it")
    return path


def read(path: Path) -> bytes:
    """Content of a regular file.

    Raises:
        DataError: it is none, or cannot be read; the message names it.
    """
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def bundled(name: str) -> Path:
    """Folder ``nnunet_trainers`` or ``mmseg_configs``, in a wheel or beside a source checkout."""
    for folder in (_PACKAGE / "_bundled" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise DMFError(f"{name} is missing from this installation; reinstall dmf-plugins")
