"""The converter's filter for images to predict on."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dmf_plugins.atomic import building, writing
from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.data.images import (
    IMAGE_SUFFIXES,
    check_size,
    decode_gray,
    encode_png,
    prepare_image,
)
from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.paths import is_litter, lies_in, read
from dmf_plugins.progress import track

_MASK = re.compile(r"(.+)_mask(?:_\d+)?", re.IGNORECASE)


def filter_images(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    bilateral: BilateralParameters | None = BilateralParameters(),
    size: tuple[int, int] | None = None,
    nnunet: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> list[Path]:
    """Filter one image or every image of a folder, as the converter does, into grey PNGs.

    Args:
        source: image file or folder of images (not recursive), whose :func:`masks_beside` are left out.
        output: file for a file (``.png``), folder for a folder, which must be absent, empty or filtered
            earlier.
        bilateral: filter parameters; None for no filter.
        size: ``(width, height)`` to resize to.
        nnunet: give outputs the ``_0000`` channel suffix ``nnUNetv2_predict`` expects.
        overwrite: replace existing outputs.
        progress: show a progress bar on stderr.

    Returns:
        The files written.

    Raises:
        UsageError: ``source`` does not exist, ``output`` exists, or two inputs share an output.
        DataError: an image cannot be read. Nothing is written in either case.
    """
    check_size(size)
    source, output = Path(source).expanduser(), Path(output).expanduser()
    if source.is_file():
        target = output if output.suffix.lower() == ".png" else output / _name(source, nnunet)
        with writing(target, overwrite) as partial:
            _filter(source, partial, bilateral, size)
        return [target]
    names = _names(source, nnunet)
    if lies_in(source, output):
        raise UsageError(f"{source} lies in {output}, which would be replaced; choose another")
    with building(output, "filter", overwrite) as folder:
        for name, path in track(list(names.items()), "filtering", progress):
            _filter(path, folder / name, bilateral, size)
    return [output / name for name in names]


def masks_beside(folder: Path) -> list[Path]:
    """Files of ``folder`` that BUSI's naming makes the masks of an image beside them.

    Such are ``a_mask.png`` and ``a_mask_1.png`` where there is an ``a.png``: nothing to predict on.
    """
    images = _images(folder)
    stems = {path.stem for path in images}
    return [p for p in images if (found := _MASK.fullmatch(p.stem)) and found[1] in stems]


def _images(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(p for p in found if not is_litter(p.name))


def _names(source: Path, nnunet: bool) -> dict[str, Path]:
    """Name of each output -> image of the folder ``source``."""
    if not source.is_dir():
        raise UsageError(f"{source} does not exist; give an image or a folder of images")
    names: dict[str, Path] = {}
    masks = set(masks_beside(source))
    for path in (p for p in _images(source) if p not in masks):
        name = _name(path, nnunet)
        if name in names:
            raise UsageError(f"two images of {source} would both become {name}; rename one")
        names[name] = path
    if not names:
        raise DataError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {source}")
    return names


def _name(path: Path, nnunet: bool) -> str:
    stem = path.stem
    if nnunet and not stem.endswith("_0000"):
        stem += "_0000"
    return f"{stem}.png"


def _filter(
    path: Path, target: Path, bilateral: BilateralParameters | None, size: tuple[int, int] | None
) -> None:
    image = decode_gray(read(path), str(path))
    target.write_bytes(encode_png(prepare_image(image, bilateral, size)))
