"""Trainers from the folders of ``nnUNet_extTrainer``, for any nnU-Net from 2.6 on.

nnU-Net knows the variable since 2.8. In earlier versions :func:`link` puts one module into nnU-Net's
own trainer package, where its finder asks every module for the name it looks for; ours answers from
those folders.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import nnunetv2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from packaging.version import Version

from dmf_plugins.atomic import building
from dmf_plugins.errors import UsageError

VARIABLE = "nnUNet_extTrainer"
_TRAINERS = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
_FINDER = '''"""Finds trainers in the folders of nnUNet_extTrainer, as nnU-Net does from 2.8 on.

Written by `dmf link-nnunet`, removed by `dmf link-nnunet --remove`.
"""

try:
    from dmf_plugins.nnunet.external import answer as __getattr__
except ImportError:  # dmf-plugins is gone
    pass
'''


def is_native() -> bool:
    """Whether the installed nnU-Net knows the variable itself."""
    return Version(version("nnunetv2")) >= Version("2.8")


def linked() -> Path:
    """Where :func:`link` puts the module; the last package nnU-Net looks into, as it does itself."""
    return _TRAINERS / "zz_external"


def link() -> Path:
    """Teach the installed nnU-Net the variable ``nnUNet_extTrainer``; return the folder written.

    Raises:
        UsageError: nnU-Net's package cannot be written.
    """
    with building(linked(), "link-nnunet", overwrite=True) as folder:
        (folder / "__init__.py").touch()
        (folder / "finder.py").write_text(_FINDER)
    return linked()


def unlink() -> bool:
    """Undo :func:`link`; return whether there was anything to undo."""
    if not linked().exists():
        return False
    shutil.rmtree(linked())
    return True


def knows_variable() -> bool:
    """Whether the installed nnU-Net finds trainers of ``nnUNet_extTrainer``, itself or linked."""
    return is_native() or linked().exists()


def find_trainer(name: str) -> type[nnUNetTrainer] | None:
    """Class of a trainer, by nnU-Net's own finder; None if it finds none."""
    if is_native():
        from nnunetv2.utilities.find_objects import (  # noqa: PLC0415
            recursive_find_trainer_class_by_name,
        )

        try:
            found: type[nnUNetTrainer] | None = recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            return None
        return found
    from nnunetv2.utilities.find_class_by_name import (  # noqa: PLC0415
        recursive_find_python_class,
    )

    found = recursive_find_python_class(str(_TRAINERS), name, "nnunetv2.training.nnUNetTrainer")
    return found


def require_finder() -> None:
    """Raises:
    UsageError: the installed nnU-Net would not find a trainer of ``nnUNet_extTrainer``.
    """
    if not knows_variable():
        raise UsageError(
            f"nnunetv2 {version('nnunetv2')} does not know nnUNet_extTrainer; "
            "run: dmf link-nnunet (or update nnunetv2 to 2.8)"
        )


def answer(name: str) -> type:
    """Class ``name`` from the folders of ``nnUNet_extTrainer``.

    Raises:
        AttributeError: none of them has it.
    """
    if not name.startswith("__"):
        for folder in filter(os.path.isdir, os.environ.get(VARIABLE, "").split(os.pathsep)):
            found = _search(folder, name)
            if found is not None:
                return found
    raise AttributeError(f"no {name} in {VARIABLE}={os.environ.get(VARIABLE, '')}")


def _search(folder: str, name: str) -> type | None:
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        for info in pkgutil.walk_packages([folder]):
            found = getattr(importlib.import_module(info.name), name, None)
            if inspect.isclass(found):
                return found
    finally:
        sys.path.remove(folder)
        # another folder may have modules of the same names
        inside = os.path.join(os.path.abspath(folder), "")
        for key in set(sys.modules) - before:
            if os.path.abspath(getattr(sys.modules[key], "__file__", None) or "").startswith(
                inside
            ):
                del sys.modules[key]
    return None
