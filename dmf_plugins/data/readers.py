"""Data sets as their authors publish them -> cases. One function a data set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from dmf_plugins.data.images import IMAGE_SUFFIXES
from dmf_plugins.data.source import Source
from dmf_plugins.errors import DataError
from dmf_plugins.registry import Registry


@dataclass(frozen=True)
class Case:
    """One image with its masks.

    Attributes:
        case_id: unique name, safe as a file name in every framework.
        category: ``benign``, ``malignant`` or ``normal``.
        image: path in the source.
        masks: paths in the source; several are to be united.
    """

    case_id: str
    category: str
    image: str
    masks: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """Why a case of ``category`` cannot be converted."""

    category: str
    text: str


@dataclass
class Reading:
    """What a reader found: cases, problems that spoil a case, and remarks that do not."""

    cases: list[Case] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def drop(self, category: str) -> None:
        """Forget the cases and problems of one category."""
        self.cases = [case for case in self.cases if case.category != category]
        self.problems = [p for p in self.problems if p.category != category]


@dataclass(frozen=True)
class DatasetInfo:
    """How to read and cite a data set."""

    title: str
    read: Callable[[Source], Reading]
    citation: str
    licence: str


READERS: Registry[DatasetInfo] = Registry("data set")

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
