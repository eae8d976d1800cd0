"""The converter's filter for images to predict on."""

from __future__ import annotations

import os
from pathlib import Path

from rich.progress import track

from dmf_plugins.data.images import (
    IMAGE_SUFFIXES,
    BilateralParameters,
    decode_gray,
    encode_png,
    prepare_image,
)
from dmf_plugins.errors import DataError, UsageError


def filter_images(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    bilateral: BilateralParameters = BilateralParameters(),
    size: tuple[int, int] | None = None,
    nnunet: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> list[Path]:
    """Filter one image or every image of a folder, as the converter does, into grey PNGs.

    Args:
        source: image file or folder of images (not recursive).
        output: file for a file (``.png``), folder for a folder.
        bilateral: filter parameters.
        size: ``(width, height)`` to resize to.
        nnunet: give outputs the ``_0000`` channel suffix ``nnUNetv2_predict`` expects.
        overwrite: replace existing outputs.
        progress: show a progress bar on stderr.

    Returns:
        The files written.

    Raises:
        UsageError: ``source`` does not exist, an output exists, or two inputs share an output.
        DataError: an image cannot be read. Nothing is written in either case.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    if source.is_dir():
        inputs = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not inputs:
            raise DataError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {source}")
        targets = [output / _name(path, nnunet) for path in inputs]
    elif source.is_file():
        inputs = [source]
        targets = [output / _name(source, nnunet) if output.suffix.lower() != ".png" else output]
    else:
        raise UsageError(f"{source} does not exist; give an image or a folder of images")
    if len(set(targets)) < len(targets):
        twice = next(t for t in targets if targets.count(t) > 1)
        raise UsageError(f"two images of {source} would both become {twice.name}; rename one")
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise UsageError(f"{existing[0]} exists; --overwrite replaces it")

    partial = []
    try:
        for path, target in track(
            list(zip(inputs, targets, strict=True)), description="filtering", disable=not progress
        ):
            image = prepare_image(decode_gray(path.read_bytes(), str(path)), bilateral, size)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.append(target.with_name(f".{target.name}.partial"))
            partial[-1].write_bytes(encode_png(image))
    except BaseException:
        for path in partial:
            path.unlink(missing_ok=True)
        raise
    for path, target in zip(partial, targets, strict=True):
        os.replace(path, target)
    return targets


def _name(path: Path, nnunet: bool) -> str:
    stem = path.stem
    if nnunet and not stem.endswith("_0000"):
        stem += "_0000"
    return f"{stem}.png"
