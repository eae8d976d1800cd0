"""The table of what was converted from what."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from dmf_plugins.data.cases import ConvertedCase


def write_manifest(path: Path, cases: Sequence[ConvertedCase]) -> None:
    """One row per case: class, split, group, patient, source files, size, lesion, checksum."""
    # a file name that is no Unicode has its odd bytes written as \udcXX
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        table = csv.writer(stream)
        table.writerow(
            ["case", "class", "split", "group", "patient", "image", "masks", "width", "height"]
            + ["lesion_fraction", "sha256"]
        )
        for case in cases:
            table.writerow(
                [case.case_id, case.category, case.split, case.cluster, case.group, case.image]
                + [";".join(case.masks), case.width, case.height]
                + [f"{case.lesion_fraction:.6f}", case.sha256]
            )
