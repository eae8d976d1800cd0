"""Conversion of a published data set into a framework's format."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from rich.table import Table

from dmf_plugins.atomic import building
from dmf_plugins.data.duplicates import Fingerprint, group_duplicates
from dmf_plugins.data.images import (
    BilateralParameters,
    decode_gray,
    encode_png,
    merge_masks,
    prepare_image,
    resize_label,
)
from dmf_plugins.data.preview import COLUMNS, contact_sheet
from dmf_plugins.data.readers import READERS, Case, Problem, Reading
from dmf_plugins.data.source import Source
from dmf_plugins.data.splits import split_cases
from dmf_plugins.data.writers import SPLITS, WRITERS, Writer, WrittenCase
from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.paths import lies_in
from dmf_plugins.progress import track

LABELS = {
    "lesion": {"background": 0, "lesion": 1},
    "benign-malignant": {"background": 0, "benign": 1, "malignant": 2},
}
LabelScheme = Literal["lesion", "benign-malignant"]
FRACTIONS = (0.70, 0.15, 0.15)  # the paper's
_PREVIEW_TILES = 4 * COLUMNS
_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Prepared:
    """What is remembered of a case once its files are written."""

    case: Case
    fingerprint: Fingerprint
    sha256: str
    width: int
    height: int
    lesion_fraction: float


@dataclass
class Conversion:
    """Outcome of :func:`convert_dataset`.

    Attributes:
        target: the data set folder.
        cases: every case with its split and duplicate group.
        remarks: things worth knowing that did not stop the conversion.
        next_steps: commands to run next.
    """

    target: Path
    cases: list[WrittenCase]
    remarks: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """Number of cases by category and split, to print."""
        count = Counter((case.category, case.split) for case in self.cases)
        categories = sorted({case.category for case in self.cases})
        table = Table("class", *SPLITS, "all")
        for name in categories:
            numbers = [count[name, split] for split in SPLITS]
            table.add_row(name, *map(str, numbers), str(sum(numbers)))
        sums = [sum(count[name, split] for name in categories) for split in SPLITS]
        table.add_row("all", *map(str, sums), str(sum(sums)))
        return table


def convert_dataset(
    dataset: str,
    source: str | os.PathLike[str],
    to: str = "nnunet",
    *,
    dataset_id: int | None = None,
    output: str | os.PathLike[str] | None = None,
    labels: LabelScheme = "lesion",
    include_normal: bool = False,
    bilateral: BilateralParameters | None = BilateralParameters(),
    size: tuple[int, int] | None = None,
    threshold: int = 127,
    seed: int = 0,
    skip_invalid: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Conversion:
    """Convert ``source`` and write it, all or nothing.

    The data set is built in a temporary sibling of the target and renamed at the end, so a killed
    conversion leaves the target as it was. Same input, options and seed give the same bytes.

    Args:
        dataset: name in ``READERS``, such as ``busi``.
        source: folder or zip as downloaded.
        to: name in ``WRITERS``, such as ``nnunet``.
        dataset_id: nnU-Net's number.
        output: where the data set folder goes; for nnU-Net None means ``$nnUNet_raw``.
        labels: ``lesion`` (0/1) or ``benign-malignant`` (0/1/2).
        include_normal: also take images without a lesion (the paper does not).
        bilateral: filter parameters; None for no filter.
        size: ``(width, height)`` to resize to; None keeps every image's own.
        threshold: a pixel is lesion where its mask exceeds this grey value.
        seed: of the 70/15/15 split.
        skip_invalid: leave spoilt cases out, with a remark, instead of stopping.
        overwrite: replace an existing target.
        workers: threads; None for one a core.
        progress: show a progress bar on stderr.

    Raises:
        UsageError: an option is wrong, the environment is not set up, or the target exists.
        DataError: the source is unreadable or inconsistent; the message names the files.
    """
    _check_options(dataset, to, labels, size, threshold)
    info = READERS[dataset]
    writer: Writer = WRITERS[to](info, dataset_id, None if output is None else Path(output))
    writer.check(overwrite)
    if lies_in(Path(source).expanduser(), writer.target):
        raise UsageError(
            f"{source} lies in {writer.target}, which would be replaced; choose another --output"
        )

    with Source(source) as files, building(writer.target, "convert", overwrite) as folder:
        reading = info.read(files)
        if not include_normal:
            reading.drop("normal")
        unknown = [case for case in reading.cases if case.category == "lesion"]
        if labels == "benign-malignant" and unknown:
            raise UsageError(
                f"{info.title} does not tell benign from malignant (such as "
                f"{files.where(unknown[0].image)}); use --labels lesion"
            )
        prepared = _prepare_all(
            reading, files, folder, labels, bilateral, size, threshold, workers, progress
        )
        if reading.problems and not skip_invalid:
            raise DataError(_problem_report([p.text for p in reading.problems]))
        if not prepared:
            raise DataError(f"no usable case in {files.path}")
        reading.remarks += [f"left out: {problem.text}" for problem in reading.problems]

        groups = group_duplicates([p.fingerprint for p in prepared])
        try:
            parts = split_cases(
                [p.case.category for p in prepared], groups.tolist(), FRACTIONS, seed
            )
        except ValueError as error:
            raise DataError(f"cannot split {files.path}: {error}") from error
        written = [
            WrittenCase(p.case.case_id, p.case.category, SPLITS[part], int(group))
            for p, part, group in zip(prepared, parts, groups, strict=True)
        ]
        reading.remarks += _duplicate_remarks(written)
        for case in written:
            for kind, path in (
                ("image", writer.image_path(case)),
                ("label", writer.label_path(case)),
            ):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.rename(folder / kind / f"{case.case_id}.png", folder / path)
        for kind in ("image", "label"):
            (folder / kind).rmdir()
        writer.write_metadata(folder, written, LABELS[labels], seed)
        _write_manifest(folder / "manifest.csv", prepared, written)
        _write_preview(folder, writer, written, seed)
    return Conversion(writer.target, written, reading.remarks, writer.publish(overwrite))


def _check_options(
    dataset: str, to: str, labels: str, size: tuple[int, int] | None, threshold: int
) -> None:
    if dataset not in READERS:
        raise UsageError(f"unknown data set {dataset!r}; known: {', '.join(sorted(READERS))}")
    if to not in WRITERS:
        raise UsageError(f"unknown format {to!r}; known: {', '.join(sorted(WRITERS))}")
    if labels not in LABELS:
        raise UsageError(f"unknown labels {labels!r}; known: {', '.join(LABELS)}")
    if not 0 <= threshold <= 254:
        raise UsageError(f"threshold must lie in 0..254, got {threshold}")
    if size is not None and min(size) < 8:
        raise UsageError(f"size must be at least 8x8, got {size[0]}x{size[1]}")


def _prepare_all(
    reading: Reading,
    files: Source,
    folder: Path,
    labels: LabelScheme,
    bilateral: BilateralParameters | None,
    size: tuple[int, int] | None,
    threshold: int,
    workers: int | None,
    progress: bool,
) -> list[Prepared]:
    """Decode, check, filter and write every case; spoilt ones become problems of ``reading``."""
    for kind in ("image", "label"):
        (folder / kind).mkdir()

    def prepare(case: Case) -> Prepared | str:
        try:
            content = files.read(case.image)
            image = decode_gray(content, files.where(case.image))
            masks = [
                (files.where(name), decode_gray(files.read(name), files.where(name)))
                for name in case.masks
            ]
            label = merge_masks(masks, image.shape, threshold)
        except DataError as error:
            return str(error)
        value = LABELS[labels].get(case.category, 1)
        (folder / "image" / f"{case.case_id}.png").write_bytes(
            encode_png(prepare_image(image, bilateral, size))
        )
        (folder / "label" / f"{case.case_id}.png").write_bytes(
            encode_png(resize_label(label * np.uint8(value), size))
        )
        height, width = image.shape
        digest = hashlib.sha256(content).hexdigest()
        return Prepared(case, Fingerprint.of(image), digest, width, height, float(label.mean()))

    prepared = []
    # the pool is the parallelism: OpenCV's own threads would only fight over the cores
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, _opencv_threads(1):
        results = track(
            pool.map(prepare, reading.cases), "converting", progress, len(reading.cases)
        )
        for case, result in zip(reading.cases, results, strict=True):
            if isinstance(result, str):
                reading.problems.append(Problem(case.category, result))
                continue
            if result.lesion_fraction == 0 and case.category != "normal":
                reading.remarks.append(f"no lesion in the mask of {files.where(case.image)}")
            prepared.append(result)
    return prepared


@contextmanager
def _opencv_threads(count: int) -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _problem_report(problems: list[str]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:_PROBLEMS_SHOWN])
    more = len(problems) - _PROBLEMS_SHOWN
    tail = f"\n  and {more} more" if more > 0 else ""
    return (
        f"{len(problems)} case(s) cannot be converted, nothing was written:\n{shown}{tail}\n"
        "mend the files, or leave these cases out with --skip-invalid"
    )


def _duplicate_remarks(cases: list[WrittenCase]) -> list[str]:
    by_group: dict[int, list[WrittenCase]] = {}
    for case in cases:
        by_group.setdefault(case.group, []).append(case)
    several = [members for members in by_group.values() if len(members) > 1]
    if not several:
        return []
    remarks = [
        f"{sum(map(len, several))} images form {len(several)} groups of near duplicates; "
        "each group was kept in one split"
    ]
    for members in several:
        if len({case.category for case in members}) > 1:
            names = ", ".join(case.case_id for case in members)
            remarks.append(f"near duplicates with different classes: {names}")
    return remarks


def _write_manifest(path: Path, prepared: list[Prepared], written: list[WrittenCase]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(
            ["case", "class", "split", "group", "image", "masks", "width", "height"]
            + ["lesion_fraction", "sha256"]
        )
        for p, w in zip(prepared, written, strict=True):
            table.writerow(
                [w.case_id, w.category, w.split, w.group, p.case.image, ";".join(p.case.masks)]
                + [p.width, p.height, f"{p.lesion_fraction:.6f}", p.sha256]
            )


def _write_preview(folder: Path, writer: Writer, written: list[WrittenCase], seed: int) -> None:
    count = min(_PREVIEW_TILES, len(written))
    chosen = sorted(np.random.default_rng(seed).choice(len(written), count, replace=False))
    entries = []
    for index in chosen:
        case = written[index]
        image, label = (
            decode_gray((folder / path).read_bytes(), path)
            for path in (writer.image_path(case), writer.label_path(case))
        )
        entries.append((f"{case.case_id} ({case.split})", image, label))
    contact_sheet(entries, folder / "preview.png")
