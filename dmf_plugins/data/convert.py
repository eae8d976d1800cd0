"""Conversion of a published data set into a framework's format."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from dmf_plugins.atomic import building
from dmf_plugins.data.cases import Case, ConvertedCase, DatasetInfo, Problem, read_checked
from dmf_plugins.data.duplicates import Fingerprint, group_duplicates
from dmf_plugins.data.images import (
    MIN_SIDE,
    Gray,
    decode_gray,
    encode_png,
    merge_masks,
    prepare_image,
    resize_label,
)
from dmf_plugins.data.manifest import write_manifest
from dmf_plugins.data.options import LABELS, ConversionOptions
from dmf_plugins.data.preview import write_preview
from dmf_plugins.data.readers import READERS
from dmf_plugins.data.source import Source
from dmf_plugins.data.splits import split_cases
from dmf_plugins.data.writers import SPLITS, WRITERS, Writer
from dmf_plugins.errors import DataError, UsageError, capped
from dmf_plugins.paths import lies_in
from dmf_plugins.progress import track
from dmf_plugins.registry import Registry

FRACTIONS = (0.70, 0.15, 0.15)  # the paper's
T = TypeVar("T")


@dataclass
class Conversion:
    """Outcome of :func:`convert_dataset`.

    Attributes:
        target: the data set folder.
        cases: every case with its split and group.
        remarks: things worth knowing that did not stop the conversion.
        next_steps: commands to run next.
        new_images: command that treats images to predict on alike; ``dataset.json`` has it too.
    """

    target: Path
    cases: list[ConvertedCase]
    remarks: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)
    new_images: str = ""


def convert_dataset(
    dataset: str,
    source: str | os.PathLike[str],
    to: str = "nnunet",
    *,
    dataset_id: int | None = None,
    output: str | os.PathLike[str] | None = None,
    **options: Any,
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
        **options: fields of :class:`ConversionOptions`, such as ``size=(128, 128)``.

    Raises:
        UsageError: an option is wrong, the environment is not set up, or the target exists.
        DataError: the source is unreadable or inconsistent; the message names the files.
    """
    settings = ConversionOptions(**options)
    new_images = settings.filter_command(nnunet=to == "nnunet")
    info: DatasetInfo = replace(_known(READERS, dataset), new_images=new_images)
    writer: Writer = _known(WRITERS, to)(info, dataset_id, None if output is None else Path(output))
    writer.check(settings.overwrite)
    if lies_in(Path(source).expanduser(), writer.target):
        raise UsageError(
            f"{source} lies in {writer.target}, which would be replaced; choose another --output"
        )
    labels = LABELS[settings.labels]
    with Source(source) as files, building(writer.target, "convert", settings.overwrite) as folder:
        cases, remarks = _read(info, files, settings, folder)
        cases = _split(cases, files, settings)
        for case in cases:
            for kind, path in (
                ("image", writer.image_path(case)),
                ("label", writer.label_path(case)),
            ):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.rename(folder / kind / f"{case.case_id}.png", folder / path)
        for kind in ("image", "label"):
            (folder / kind).rmdir()
        writer.write_metadata(folder, cases, labels, settings.seed)
        write_manifest(folder / "manifest.csv", cases)
        write_preview(folder, writer, cases, settings.seed)
    remarks = _duplicate_remarks(cases) + remarks
    return Conversion(writer.target, cases, remarks, writer.publish(labels), new_images)


def prepare_case(
    case: Case, files: Source, options: ConversionOptions
) -> tuple[ConvertedCase, Gray, Gray]:
    """Decode, check, filter and resize one case.

    Returns:
        The case with what was measured on it, its image and its label map.

    Raises:
        DataError: a file is damaged, an image is tiny, or a mask does not fit its image; the message
            names it.
    """
    content = files.read(case.image)
    image = decode_gray(content, files.where(case.image))
    if min(image.shape) < MIN_SIDE:
        raise DataError(
            f"{files.where(case.image)} is {image.shape[1]}x{image.shape[0]} pixels, less than "
            f"{MIN_SIDE}x{MIN_SIDE}; replace it, or leave such cases out with --skip-invalid"
        )
    masks = [
        (files.where(name), decode_gray(files.read(name), files.where(name))) for name in case.masks
    ]
    lesion = merge_masks(masks, image.shape, options.threshold)
    value = np.uint8(LABELS[options.labels].get(case.category, 1))
    label = resize_label(lesion * value, options.size)
    converted = ConvertedCase(
        **vars(case),
        sha256=hashlib.sha256(content).hexdigest(),
        width=image.shape[1],
        height=image.shape[0],
        lesion_fraction=float(lesion.mean()),
        lost=bool(lesion.any() and not label.any()),
        fingerprint=Fingerprint.of(image),
    )
    return converted, prepare_image(image, options.bilateral, options.size), label


def _known(registry: Registry[T], name: str) -> T:
    try:
        return registry[name]
    except KeyError as error:
        raise UsageError(error.args[0]) from error


def _read(
    info: DatasetInfo, files: Source, options: ConversionOptions, folder: Path
) -> tuple[list[ConvertedCase], list[str]]:
    """The cases of the source, written to ``folder/image`` and ``folder/label``, and remarks."""
    reading = read_checked(info, files)
    wanted = [c for c in reading.cases if options.include_normal or c.category != "normal"]
    problems = [p for p in reading.problems if options.include_normal or p.category != "normal"]
    unknown = next((case for case in wanted if case.category == "lesion"), None)
    if options.labels == "benign-malignant" and unknown is not None:
        raise UsageError(
            f"{info.title} does not tell benign from malignant (such as "
            f"{files.where(unknown.image)}); use --labels lesion"
        )
    outcomes = _prepare_all(wanted, files, options, folder)
    cases = [outcome for outcome in outcomes if isinstance(outcome, ConvertedCase)]
    problems += [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    if problems and not options.skip_invalid:
        report = "\n  ".join(capped([p.text for p in problems]))
        raise DataError(
            f"{len(problems)} case(s) cannot be converted, nothing was written:\n  {report}\n"
            "fix the files, or leave these cases out with --skip-invalid"
        )
    if not cases:
        raise DataError(f"no usable case in {files.path}")
    remarks = [
        f"no lesion in the mask of {files.where(case.image)}"
        for case in cases
        if case.lesion_fraction == 0 and case.category != "normal"
    ]
    remarks += [
        f"the lesion of {files.where(case.image)} is too small for --size: its label map is empty"
        for case in cases
        if case.lost
    ]
    remarks += [f"left out: {problem.text}" for problem in problems]
    return cases, remarks + reading.remarks


def _prepare_all(
    cases: list[Case], files: Source, options: ConversionOptions, folder: Path
) -> list[ConvertedCase | Problem]:
    for kind in ("image", "label"):
        (folder / kind).mkdir()

    def prepare(case: Case) -> ConvertedCase | Problem:
        try:
            converted, image, label = prepare_case(case, files, options)
        except DataError as error:
            return Problem(case.category, str(error))
        (folder / "image" / f"{case.case_id}.png").write_bytes(encode_png(image))
        (folder / "label" / f"{case.case_id}.png").write_bytes(encode_png(label))
        return converted

    with _threads(options.workers) as pool:
        results = pool.map(prepare, cases)
        return list(track(results, "converting", options.progress, len(cases)))


@contextmanager
def _threads(count: int | None) -> Iterator[Executor]:
    """A pool that is the parallelism: OpenCV's own threads would only fight over the cores.

    An interrupt drops what is queued, and OpenCV gets its threads back when nobody is inside it.
    """
    # an interrupt of an import in the main thread can leave Python's import lock taken, and a thread
    # that imports would wait for ever: PIL's formats are loaded before the threads begin
    Image.init()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(count or os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(before)


def _split(
    cases: list[ConvertedCase], files: Source, options: ConversionOptions
) -> list[ConvertedCase]:
    """The cases with their group of near duplicates and patients, and the split of that group."""
    fractions: tuple[float, ...] = FRACTIONS
    parts_of = list(SPLITS)
    if options.fold is not None:
        k, n = options.fold
        fractions, parts_of = (1.0,) * n, ["train"] * n
        parts_of[k], parts_of[(k + 1) % n] = "test", "val"
    groups = group_duplicates([case.fingerprint for case in cases], [case.group for case in cases])
    try:
        parts = split_cases(
            [case.category for case in cases], groups.tolist(), fractions, options.seed
        )
    except ValueError as error:
        raise DataError(f"cannot split {files.path}: {error}") from error
    return [
        replace(case, cluster=cluster, split=parts_of[part])
        for case, cluster, part in zip(cases, groups.tolist(), parts, strict=True)
    ]


def _duplicate_remarks(cases: list[ConvertedCase]) -> list[str]:
    by_cluster = defaultdict(list)
    for case in cases:
        by_cluster[case.cluster].append(case)
    several = [members for members in by_cluster.values() if len(members) > 1]
    if not several:
        return []
    remarks = [
        f"{sum(map(len, several))} images form {len(several)} group{'s' * (len(several) > 1)} of near "
        "duplicates or patients; each was kept in one split"
    ]
    for members in several:
        if len({case.category for case in members}) > 1:
            names = ", ".join(case.case_id for case in members)
            remarks.append(f"near duplicates with different classes: {names}")
    return remarks
