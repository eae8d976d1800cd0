"""Data sets as their authors publish them -> cases. One function per data set."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

from dmf_plugins.data.cases import Case, DatasetInfo, Problem, Reading
from dmf_plugins.data.images import IMAGE_SUFFIXES
from dmf_plugins.data.source import Source
from dmf_plugins.errors import DataError
from dmf_plugins.registry import Registry

READERS: Registry[DatasetInfo] = Registry("data set", "dmf_plugins.readers", DatasetInfo)

_BUSI_FILE = re.compile(
    r"(?P<category>benign|malignant|normal) \((?P<number>\d+)\)(?P<mask>_mask(?:_\d+)?)?\.png",
    re.IGNORECASE,
)


def read_busi(source: Source) -> Reading:
    """BUSI: ``{benign,malignant,normal}/benign (1).png`` with ``benign (1)_mask.png``, ``_mask_1.png``.

    The folders may lie at any depth.

    Raises:
        DataError: nothing in ``source`` looks like BUSI.
    """
    images: dict[tuple[str, int], list[str]] = defaultdict(list)
    masks: dict[tuple[str, int], list[str]] = defaultdict(list)
    reading = Reading()
    for name in source.names:
        match = _BUSI_FILE.fullmatch(PurePosixPath(name).name)
        if match is None:
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                reading.remarks.append(f"not a BUSI file name, left alone: {source.where(name)}")
            continue
        key = match["category"].lower(), int(match["number"])
        (masks if match["mask"] else images)[key].append(name)
    if not images:
        raise DataError(
            f"no BUSI images in {source.path}: expected files such as 'benign/benign (1).png' with "
            "'benign/benign (1)_mask.png'; give the folder or zip as downloaded"
        )
    for key in sorted(images.keys() | masks.keys()):
        category, number = key
        if len(images[key]) > 1:
            found = " and ".join(source.where(name) for name in images[key])
            problem = f"the same image stands twice: {found}; remove one"
        elif not images[key]:
            problem = f"mask without an image: {source.where(masks[key][0])}"
        elif not masks[key]:
            image = PurePosixPath(images[key][0])
            problem = (
                f"missing mask: {source.where(str(image))} needs {image.stem}_mask.png beside it"
            )
        else:
            case_id = f"{category}_{number:03d}"
            reading.cases.append(Case(case_id, category, images[key][0], tuple(masks[key])))
            continue
        reading.problems.append(Problem(category, problem))
    return reading


_IMAGE_FOLDERS = {"images", "image", "imgs", "img"}
_MASK_FOLDERS = {"masks", "mask", "labels", "label", "annotations", "gt", "ground_truth"}
_FOLDERS = _IMAGE_FOLDERS | _MASK_FOLDERS
_MASK_AFFIX = re.compile(
    r"^(?:mask|gt|label|seg)[ _-]+|[ _-]+(?:mask|gt|label|seg|prob|probability|map)(?:[ _-]?\d)?$",
    re.IGNORECASE,
)


def read_paired(source: Source) -> Reading:
    """Folders ``images`` and ``masks`` at any depth, as in BUSC and BUS.

    Image and mask belong together when class folder and stem agree, a prefix or suffix such as
    ``_mask`` aside; where no stem agrees and the counts are equal, in sorted order, which is
    remarked. The class is read from a folder or file name that holds ``benign`` or ``malignant``.

    Raises:
        DataError: there is no such pair of folders.
    """
    images, masks = _in_folders(source)
    if not images or not masks:
        missing = "masks" if images else "images"
        raise DataError(
            f"no folder '{missing}' with images in {source.path}: expected folders 'images' and "
            "'masks' at any depth; give the folder or zip as downloaded"
        )
    reading = Reading()
    by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in masks:
        by_key[_class_of(name), _stem(name)].append(name)
    keys = {name: (_class_of(name), _stem(name)) for name in images}
    if not any(key in by_key for key in keys.values()):
        if len(images) != len(masks):
            raise DataError(
                f"no mask in {source.path} is named like an image, and {len(images)} images cannot be "
                f"paired with {len(masks)} masks in order; name them alike, such as a.png and a_mask.png"
            )
        reading.remarks.append(
            f"no mask is named like an image: {len(images)} pairs made in sorted order, such as "
            f"{images[0]} with {masks[0]}; look at preview.png"
        )
        by_key = {keys[image]: [mask] for image, mask in zip(images, masks, strict=True)}
    seen: dict[str, str] = {}
    for name in images:
        category, stem = keys[name]
        found = by_key.pop(keys[name], None)
        case_id = _case_id(category, stem)
        if case_id in seen:
            text = f"{source.where(name)} and {source.where(seen[case_id])} would share the name {case_id}"
            reading.problems.append(Problem(category, f"{text}; rename one"))
        elif found is None:
            text = f"missing mask: {source.where(name)} needs a mask named {stem} or {stem}_mask"
            reading.problems.append(Problem(category, text))
        else:
            seen[case_id] = name
            reading.cases.append(Case(case_id, category, name, tuple(found)))
    for (category, _), names in by_key.items():
        text = f"mask without an image: {source.where(names[0])}"
        reading.problems.append(Problem(category, text))
    return reading


def read_busc(source: Source) -> Reading:
    """BUSC, the annotated release: ``Segmentation/{images,masks}``. See :func:`read_paired`.

    Raises:
        DataError: ``source`` is the parent release, which has no masks, or holds no pairs.
    """
    parent = [n for n in source.names if "originals" in PurePosixPath(n.lower()).parts]
    if parent and not _in_folders(source)[1]:
        raise DataError(
            f"{source.path} is the release without masks (Mendeley Data wmy84gzngw, "
            f"{source.where(parent[0])}); the annotated one is Mendeley Data vckdnhtw26"
        )
    return read_paired(source)


def _in_folders(source: Source) -> tuple[list[str], list[str]]:
    """Images and masks in natural order, told apart by the nearest parent with a telling name."""
    images: list[str] = []
    masks: list[str] = []
    for name in source.names:
        path = PurePosixPath(name.lower())
        nearest = next((part for part in reversed(path.parts[:-1]) if part in _FOLDERS), None)
        if nearest is not None and path.suffix in IMAGE_SUFFIXES:
            (masks if nearest in _MASK_FOLDERS else images).append(name)
    return sorted(images, key=_natural), sorted(masks, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which ``a2`` comes before ``a10``."""
    return [(int(p), "") if p.isdigit() else (-1, p.lower()) for p in re.split(r"(\d+)", name)]


def _class_of(name: str) -> str:
    for part in reversed(PurePosixPath(name.lower()).parts):
        named = [category for category in ("benign", "malignant") if category in part]
        if len(named) == 1:  # "benign_and_malignant" tells nothing
            return named[0]
    return "lesion"


def _stem(name: str) -> str:
    return _MASK_AFFIX.sub("", PurePosixPath(name).stem.lower())


def _case_id(category: str, stem: str) -> str:
    """File name safe in every framework; nnU-Net reads a last ``_0000`` as a channel number."""
    safe = re.sub(r"\W+", "_", stem).strip("_")
    safe = re.sub(r"_(\d{4})$", r"-\1", safe)
    return safe if category in safe else f"{category}_{safe}"


READERS.register("busi")(
    DatasetInfo(
        title="BUSI",
        read=read_busi,
        citation=(
            "Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. "
            "Data in Brief 28, 104863 (2020). doi:10.1016/j.dib.2019.104863"
        ),
        licence="not stated in the files; see the publication and the page you downloaded from",
    )
)

READERS.register("busc")(
    DatasetInfo(
        title="BUSC",
        read=read_busc,
        citation=(
            "Iqbal A, Sharif M. UNet: A semi-supervised method for segmentation of breast tumor images "
            "using a U-shaped pyramid-dilated network. Expert Systems with Applications 221, 119718 "
            "(2023). Data: Mendeley Data, doi:10.17632/vckdnhtw26.1; images from Rodrigues PS, Breast "
            "Ultrasound Image, Mendeley Data, doi:10.17632/wmy84gzngw.1"
        ),
        licence="CC BY 4.0",
    )
)
READERS.register("bus")(
    DatasetInfo(
        title="BUS",
        read=read_paired,
        citation=(
            "Iqbal A, Sharif M. UNet: A semi-supervised method for segmentation of breast tumor images "
            "using a U-shaped pyramid-dilated network. Expert Systems with Applications 221, 119718 "
            "(2023). Data: BUS Synthetic Dataset, Mendeley Data, doi:10.17632/r4phtn49r7.1"
        ),
        licence="see the Mendeley Data page",
    )
)
