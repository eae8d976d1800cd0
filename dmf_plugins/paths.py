"""Questions about paths, and the folders that travel with the package."""

from __future__ import annotations

import os
from pathlib import Path

from dmf_plugins.errors import DMFError

_PACKAGE = Path(__file__).resolve().parent


def lies_in(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, by any link; unlike ``resolve``, a loop of links is
    no error."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def bundled(name: str) -> Path:
    """Folder ``nnunet_trainers`` or ``mmseg_configs``, in a wheel or beside a source checkout."""
    for folder in (_PACKAGE / "_bundled" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise DMFError(f"{name} is missing from this installation; reinstall dmf-plugins")
