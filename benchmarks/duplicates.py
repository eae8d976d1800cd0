"""What the grouping of near duplicates finds and misses on a folder in BUSI's layout.

python benchmarks/duplicates.py Dataset_BUSI_with_GT OUT [--sift]

Writes contact sheets to look at: OUT/found_*.png holds the pairs found, the least alike first,
OUT/missed_*.png the nearest pairs that were not, the most alike first. --sift compares every pair by
SIFT and RANSAC (minutes) and lists the pairs of at least 40 inliers that are in different groups.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from common import heading, table

from dmf_plugins.data.duplicates import (
    MIN_CORRELATION,
    MIN_SHARED_WORDS,
    Fingerprint,
    group_duplicates,
    similarities,
)
from dmf_plugins.data.images import Gray, decode_gray
from dmf_plugins.data.readers import read_busi
from dmf_plugins.data.source import Source

Pair = tuple[int, int]
TILE, PAIRS_PER_SHEET, COLUMNS = 230, 24, 3
LOWE_RATIO, MIN_INLIERS = 0.85, 40


def load(folder: Path) -> dict[str, Gray]:
    with Source(folder) as source:
        return {
            case.case_id: decode_gray(source.read(case.image), source.where(case.image))
            for case in read_busi(source).cases
        }


def cell(images: list[Gray], names: list[str], pair: Pair, note: str) -> np.ndarray:
    canvas = np.full((TILE * 3 // 4 + 20, 2 * TILE + 10), 255, np.uint8)
    for place, index in enumerate(pair):
        image = images[index]
        scale = min(TILE / image.shape[1], TILE * 0.75 / image.shape[0])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        left = place * (TILE + 4)
        canvas[: small.shape[0], left : left + small.shape[1]] = small
    text = f"{names[pair[0]]} {names[pair[1]]} {note}"
    cv2.putText(canvas, text, (2, canvas.shape[0] - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 0, 1, 16)
    return canvas


def sheets(stem: Path, cells: list[np.ndarray]) -> None:
    for number, start in enumerate(range(0, len(cells), PAIRS_PER_SHEET)):
        page = cells[start : start + PAIRS_PER_SHEET]
        page += [np.full_like(page[0], 255)] * (-len(page) % COLUMNS)
        rows = [np.hstack(page[i : i + COLUMNS]) for i in range(0, len(page), COLUMNS)]
        cv2.imwrite(f"{stem}_{number}.png", np.vstack(rows))


def inliers(images: list[Gray]) -> dict[Pair, int]:
    """Matches of every pair that one similarity transform explains."""
    sift = cv2.SIFT_create(500, contrastThreshold=0.02)
    features = []
    for image in images:
        scale = 512 / max(image.shape)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        points, found = sift.detectAndCompute(small, None)
        found = np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-6))
        features.append((np.array([p.pt for p in points], np.float32), found))
    counts = {}
    for i, j in itertools.combinations(range(len(images)), 2):
        (here, a), (there, b) = features[i], features[j]
        alike = a @ b.T
        rows, best = np.arange(len(a)), alike.argmax(1)
        first = alike[rows, best].copy()
        alike[rows, best] = -1
        kept = np.sqrt(2 - 2 * first.clip(max=1)) < LOWE_RATIO * np.sqrt(2 - 2 * alike.max(1))
        if kept.sum() >= MIN_INLIERS:
            _, mask = cv2.estimateAffinePartial2D(
                here[kept], there[best[kept]], ransacReprojThreshold=4, maxIters=500
            )
            counts[i, j] = 0 if mask is None else int(mask.sum())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="extracted BUSI folder")
    parser.add_argument("out", type=Path, help="folder for the contact sheets")
    parser.add_argument("--sift", action="store_true", help="compare with SIFT and RANSAC")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    heading("Near duplicates")
    found = load(args.data)
    names, images = list(found), list(found.values())

    cv2.setNumThreads(1)
    start = time.perf_counter(), time.process_time()
    fingerprints = [Fingerprint.of(image) for image in images]
    middle = time.perf_counter(), time.process_time()
    groups = group_duplicates(fingerprints)
    end = time.perf_counter(), time.process_time()
    correlation, shared = (
        np.concatenate(part) for part in list(zip(*similarities(fingerprints), strict=True))[1:]
    )
    by_thumbnail = np.triu(correlation > MIN_CORRELATION, 1)
    by_words = np.triu(shared >= MIN_SHARED_WORDS, 1)
    sizes = sorted((n for n in Counter(groups.tolist()).values() if n > 1), reverse=True)
    per_thousand = 1000 / len(images)
    rows = [
        ["images", len(images)],
        ["pairs by thumbnail alone", int((by_thumbnail & ~by_words).sum())],
        ["pairs by words alone", int((by_words & ~by_thumbnail).sum())],
        ["pairs by both", int((by_words & by_thumbnail).sum())],
        ["groups; images in them; the largest", f"{len(sizes)}; {sum(sizes)}; {sizes[:3]}"],
    ]
    for label, a, b in (("fingerprints", start, middle), ("grouping", middle, end)):
        wall, cpu = (per_thousand * (y - x) for x, y in zip(a, b, strict=True))
        rows.append(
            [f"{label} of 1,000 images, one thread: s wall, s CPU", f"{wall:.2f}, {cpu:.2f}"]
        )
    table(["", ""], rows)

    closeness = np.maximum(correlation / MIN_CORRELATION, shared / MIN_SHARED_WORDS)
    apart = groups[:, None] != groups[None, :]

    def cells(pairs: list[Pair]) -> list[np.ndarray]:
        return [cell(images, names, p, f"{correlation[p]:.2f} {shared[p]:.0f}w") for p in pairs]

    hits = sorted(zip(*np.nonzero(by_thumbnail | by_words), strict=True), key=closeness.__getitem__)
    nearest = sorted(zip(*np.nonzero(np.triu(apart, 1)), strict=True), key=lambda p: -closeness[p])
    sheets(args.out / "found", cells(hits))
    sheets(args.out / "missed", cells(nearest[: 2 * PAIRS_PER_SHEET]))
    if args.sift:
        counts = inliers(images)
        strong = sorted((p for p in counts if counts[p] >= MIN_INLIERS), key=lambda p: -counts[p])
        kept = [p for p in strong if apart[p]]
        print(f"\nSIFT: {len(strong)} pairs of {MIN_INLIERS} or more inliers, apart:")
        table(["pair", "inliers"], [[f"{names[i]} {names[j]}", counts[i, j]] for i, j in kept])
        sheets(args.out / "sift_apart", cells(kept))


if __name__ == "__main__":
    main()
