"""Label maps on disk: PNG and other pictures, NIfTI and other medical volumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmf_plugins.errors import DataError, UsageError, needs
from dmf_plugins.paths import is_litter, regular

PICTURES = {".png", ".bmp", ".tif", ".tiff", ".gif"}
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


class LabelMap(NamedTuple):
    """Whole-number labels ``[H, W]`` or ``[D, H, W]``, the size of a pixel along each axis, and where
    a volume lies in space, in ITK's terms."""

    labels: NDArray[np.int64]
    spacing: tuple[float, ...]
    unit: str
    origin: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()


def stem(path: Path) -> str:
    """File name without a suffix of a label map."""
    name = path.name
    for suffix in VOLUMES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def find_label_maps(folder: Path) -> dict[str, Path]:
    """Label maps of a folder by stem.

    Raises:
        UsageError: the folder does not exist.
        DataError: it holds none, two of one stem, or one that is not a regular file.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give a folder of label maps")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        known = path.suffix.lower() in PICTURES or path.name.lower().endswith(VOLUMES)
        if known and not is_litter(path.name):
            if stem(path) in found:
                raise DataError(f"{path} and {found[stem(path)]} share a name; remove one")
            found[stem(path)] = regular(path)
    if not found:
        suffixes = ", ".join([*sorted(PICTURES), *VOLUMES])
        raise DataError(f"no label maps ({suffixes}) in {folder}")
    return found


def read_label_map(path: Path) -> LabelMap:
    """Labels of one file; pictures have a spacing of one pixel, volumes of millimetres.

    Raises:
        DataError: the file cannot be read, is in colour, or holds numbers that are not whole.
        UsageError: a volume without SimpleITK installed.
    """
    if path.name.lower().endswith(VOLUMES):
        with needs("evaluate"):
            import SimpleITK
        try:
            image = SimpleITK.ReadImage(str(path))
        except RuntimeError as error:
            raise DataError(f"{path} is not a readable image ({error})") from error
        values = SimpleITK.GetArrayFromImage(image)
        place = tuple(reversed(image.GetSpacing())), "mm", image.GetOrigin(), image.GetDirection()
    else:
        try:
            with Image.open(path) as picture:
                if picture.mode not in ("1", "L", "P", "I", "I;16"):
                    raise DataError(
                        f"{path} is in colour (mode {picture.mode}); a label map has one channel"
                    )
                values = np.asarray(picture)  # of a palette the indices, which are the labels
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is not a readable image ({error})") from error
        place = (1.0,) * values.ndim, "pixels", (), ()
    labels = values.astype(np.int64)
    if not np.array_equal(labels, values):
        raise DataError(f"{path} holds values that are not whole numbers; it is no label map")
    return LabelMap(labels, *place)


def parse_labels(text: str | None, truth: Path) -> dict[str, int]:
    """Foreground class names and values.

    Args:
        text: ``lesion=1`` or ``benign=1,malignant=2``; a ``dataset.json``; or None, which takes the
            ``dataset.json`` in or above the folder ``truth``, as converters write it.

    Raises:
        UsageError: the text or the file cannot be understood.
    """
    if text is None:
        places = [folder / "dataset.json" for folder in (truth, *truth.resolve().parents[:2])]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UsageError(
                f"no dataset.json near {truth} tells the labels; give --labels, e.g. lesion=1"
            )
    elif text.endswith(".json"):
        path = Path(text)
    else:
        return _check(_pairs(text), text)
    try:
        content = json.loads(regular(path).read_text(encoding="utf-8"))
    except (DataError, OSError, ValueError) as error:
        raise UsageError(f"{path} is not a readable dataset.json ({error})") from error
    content = content if isinstance(content, Mapping) else {}
    labels = content.get("labels")
    if labels is None and isinstance(content.get("classes"), list):
        labels = {name: value for value, name in enumerate(content["classes"])}
    if not isinstance(labels, Mapping) or not all(isinstance(v, int) for v in labels.values()):
        raise UsageError(f"{path} names no plain labels; give --labels, e.g. lesion=1")
    plain = {str(k): v for k, v in labels.items() if k not in ("background", "ignore")}
    return _check(plain, str(path))


def _pairs(text: str) -> dict[str, int]:
    labels = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if not name or not value.isdigit():
            raise UsageError(f"--labels must be like 'benign=1,malignant=2', got {text!r}")
        labels[name] = int(value)
    return labels


def _check(labels: dict[str, int], where: str) -> dict[str, int]:
    if not labels or min(labels.values()) < 1 or len(set(labels.values())) < len(labels):
        raise UsageError(f"labels must differ and be above the background 0, got {where}")
    return labels
