"""What a reader hands over, and the one place where it is checked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from dmf_plugins.data.duplicates import Fingerprint
from dmf_plugins.data.source import Source
from dmf_plugins.errors import DataError, UsageError

CATEGORIES = ("benign", "malignant", "normal", "lesion")
MAX_ID_BYTES = 200  # what file systems allow, 255, less what the formats add
_SAFE_ID = re.compile(r"\w([\w.-]*[\w-])?")
_SAFE_TITLE = re.compile(r"\w([\w .-]*[\w-])?")


@dataclass(frozen=True)
class Case:
    """One image with its masks.

    Attributes:
        case_id: unique name, safe as a file name in every framework.
        category: ``benign``, ``malignant``, ``normal``, or ``lesion`` where the class is not known.
        image: path in the source.
        masks: paths in the source; several are merged.
        group: what must not be divided by a split, such as the patient; None if the image alone.
    """

    case_id: str
    category: str
    image: str
    masks: tuple[str, ...]
    group: str | int | None = None


@dataclass(frozen=True, kw_only=True)
class ConvertedCase(Case):
    """A case, and what the converter found and decided.

    Attributes:
        sha256: of the image file in the source.
        width, height: of that image, pixels.
        lesion_fraction: share of its pixels that are lesion.
        lost: whether resizing left no pixel of the lesion.
        fingerprint: for finding near duplicates.
        cluster: number of the cases linked by near duplicates or by the reader's ``group``.
        split: ``train``, ``val`` or ``test``; the same within a cluster.
    """

    sha256: str
    width: int
    height: int
    lesion_fraction: float
    lost: bool = False
    fingerprint: Fingerprint = field(repr=False, compare=False)
    cluster: int = -1
    split: str = ""


@dataclass(frozen=True)
class Problem:
    """Why a case of ``category`` cannot be converted."""

    category: str
    text: str


@dataclass
class Reading:
    """What a reader found: cases, problems that make a case invalid, and remarks that do not."""

    cases: list[Case] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetInfo:
    """How to read and cite a data set; ``title`` names its folder.

    A writer also finds here ``new_images``, the command that treats images to predict on alike.
    """

    title: str
    read: Callable[[Source], Reading]
    citation: str
    licence: str
    new_images: str = ""

    def __post_init__(self) -> None:
        if not _SAFE_TITLE.fullmatch(self.title):
            raise UsageError(f"a data set's title must do for a folder's name, got {self.title!r}")


def read_checked(info: DatasetInfo, source: Source) -> Reading:
    """Read ``source``; what of a reader's cases no writer could take becomes problems.

    Raises:
        DataError: the reader finds nothing of its own, or returns something else.
    """
    reading = info.read(source)
    if not isinstance(reading, Reading):
        raise DataError(f"the reader of {info.title} returned {reading!r}, not a Reading")
    files, taken = set(source.names), set[str]()
    checked = Reading(problems=list(reading.problems), remarks=list(reading.remarks))
    for case in reading.cases:
        fault = _fault(case, files, taken)
        if fault is None:
            checked.cases.append(case)
            continue
        text = (
            f"reader of {info.title}, case {case.case_id!r} ({source.where(case.image)}): {fault}"
        )
        checked.problems.append(Problem(case.category, text))
    return checked


def _fault(case: Case, files: set[str], taken: set[str]) -> str | None:
    """Why ``case`` cannot be written, if so; remembers its id in ``taken``."""
    # disks that ignore case or normalise Unicode would take the two for one file
    key = unicodedata.normalize("NFC", case.case_id).casefold()
    missing = sorted({case.image, *case.masks} - files)
    fault = None
    if not _SAFE_ID.fullmatch(case.case_id):
        fault = "an id is letters, digits, '_', '-' and '.', without a dot at either end"
    elif len(case.case_id.encode()) > MAX_ID_BYTES:
        fault = f"an id has at most {MAX_ID_BYTES} bytes; this one has {len(case.case_id.encode())}"
    elif key in taken:
        fault = "another case has this id, upper and lower case aside; ids must be unique"
    elif case.category not in CATEGORIES:
        fault = f"class {case.category!r} is not one of {', '.join(CATEGORIES)}"
    elif missing:
        fault = f"there is no file {missing[0]!r} in the source"
    elif not case.masks and case.category != "normal":
        fault = "it has no mask, though its class is not 'normal'"
    taken.add(key)
    return fault
