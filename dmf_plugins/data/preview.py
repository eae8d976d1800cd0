"""Contact sheet of a converted data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dmf_plugins.data.cases import ConvertedCase
from dmf_plugins.data.images import Gray, decode_gray
from dmf_plugins.data.writers import Writer

TILE = 192
COLUMNS = 6
_COLOURS = {1: (60, 200, 255), 2: (80, 80, 255)}  # BGR: lesion or benign, malignant
_CAPTION = 22


def write_preview(folder: Path, writer: Writer, cases: Sequence[ConvertedCase], seed: int) -> None:
    """Write ``preview.png`` of some of the cases in ``folder``, the same for the same seed."""
    count = min(4 * COLUMNS, len(cases))
    chosen = sorted(np.random.default_rng(seed).choice(len(cases), count, replace=False))
    entries = []
    for case in (cases[index] for index in chosen):
        image, label = (
            decode_gray((folder / path).read_bytes(), path)
            for path in (writer.image_path(case), writer.label_path(case))
        )
        entries.append((f"{case.case_id} ({case.split})", image, label))
    contact_sheet(entries, folder / "preview.png")


def contact_sheet(entries: list[tuple[str, Gray, Gray]], path: Path) -> None:
    """Write a PNG of images with the outline of their labels.

    Args:
        entries: caption, ``[H, W]`` uint8 image and ``[H, W]`` label map of each tile.
        path: file to write.
    """
    tiles = [_tile(*entry) for entry in entries]
    blank = np.full((TILE + _CAPTION, TILE, 3), 255, np.uint8)
    tiles += [blank] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    path.write_bytes(cv2.imencode(".png", np.vstack(rows))[1].tobytes())


def _tile(caption: str, image: Gray, label: Gray) -> np.ndarray:
    scale = TILE / max(image.shape)
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    outline = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    for value, colour in _COLOURS.items():
        found, _ = cv2.findContours(
            (outline == value).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(small, found, -1, colour, 1)
    canvas = np.full((TILE + _CAPTION, TILE, 3), 255, np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    cv2.putText(
        canvas,
        caption,
        (4, TILE + 15),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.42,
        (40, 40, 40),
        1,
        cv2.LINE_AA,
    )
    return canvas
