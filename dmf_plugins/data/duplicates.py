"""Perceptual grouping, so that copies of one scan never sit on both sides of a split.

Two images belong together when either of two tests says so:

- their thumbnails correlate, on average as they are and with local contrast evened out: the first
  alone is mostly the depth gradient that all scans have. A median filter takes captions and callipers
  out. This finds copies and neighbouring frames of a sweep that show the same section of the screen.
- they share many words. A word is 32 of the 256 bits of an ORB descriptor, taken at fixed places;
  the corners of one scan give equal words however it was cropped, framed or written on, which moves
  a thumbnail beyond recognition. Words that many images hold come from the scanner's own lettering.

``benchmarks/duplicates.py`` shows what they find and miss; ``docs/converters.md`` has the numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from dmf_plugins.data.images import Gray

MIN_CORRELATION = 0.66
MIN_SHARED_WORDS = 15
MAX_IMAGES_PER_WORD = 20
_BLACK = 2
_CORNERS = 200
_SIDE_TO_HALVE = 256  # smaller images would keep too few corners
_WORD_PLACES = np.arange(8, dtype=np.uint64) << np.uint64(32)
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Fingerprint:
    """Small summary of an image.

    Attributes:
        thumbnail: two standardised 32x32 pictures, as it is and with even contrast; of norm 1.
        words: sorted and distinct.
    """

    thumbnail: NDArray[np.float32]
    words: NDArray[np.uint64]

    @classmethod
    def of(cls, image: Gray) -> Fingerprint:
        """Fingerprint of an ``[H, W]`` uint8 image."""
        half = image
        if min(image.shape) >= _SIDE_TO_HALVE:  # by two exactly, so that a crop keeps its words
            height, width = (side // 2 for side in image.shape)
            even = image[: 2 * height, : 2 * width]
            half = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        return cls(_thumbnail(half), _words(half))


def similarities(
    fingerprints: Sequence[Fingerprint],
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Compare all images with all, some rows at a time to save memory.

    Yields:
        Number of the first row; correlations of thumbnails and numbers of shared words, ``[rows, n]``.
    """
    thumbnails = np.stack([f.thumbnail for f in fingerprints])
    held = _images_by_words([f.words for f in fingerprints])
    for start in range(0, len(fingerprints), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        yield start, thumbnails[rows] @ thumbnails.T, (held[rows] @ held.T).toarray()


def group_duplicates(
    fingerprints: Sequence[Fingerprint], groups: Sequence[Hashable | None] | None = None
) -> NDArray[np.intp]:
    """Group number of every image; images linked through near copies share one.

    Args:
        fingerprints: of every image.
        groups: what else belongs together, such as the patient of every image; None links nothing.

    Returns:
        ``[n]`` integers, numbered by first appearance.
    """
    n = len(fingerprints)
    links = [_same(groups)] if groups is not None else []
    for start, correlation, shared in similarities(fingerprints):
        alike = (correlation > MIN_CORRELATION) | (shared >= MIN_SHARED_WORDS)
        links.append(np.argwhere(alike) + (start, 0))
    rows, columns = np.concatenate(links).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return np.argsort(np.argsort(first))[labels]


def _thumbnail(image: Gray) -> NDArray[np.float32]:
    clean = cv2.medianBlur(cv2.resize(image, (128, 96), interpolation=cv2.INTER_AREA), 3)
    small = cv2.resize(_without_borders(clean), (32, 32), interpolation=cv2.INTER_AREA)
    small = small.astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), 3)
    contrast = np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), 3))
    both = np.stack((small, detail / (contrast + 3))).reshape(
        2, -1
    )  # + 3: noise in black stays small
    both -= both.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(both, axis=1, keepdims=True)
    return (both / np.where(norm > 0, norm, 1)).ravel().astype(np.float32) / np.float32(2**0.5)


def _without_borders(image: NDArray[Any]) -> NDArray[Any]:
    """Without black frames, which would make all framed images alike."""
    lit = image > _BLACK
    rows, columns = (np.flatnonzero(lit.mean(axis) > 0.01) for axis in (1, 0))
    if len(rows) < 8 or len(columns) < 8:
        return image
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _words(image: Gray) -> NDArray[np.uint64]:
    orb = cv2.ORB_create(_CORNERS, nlevels=5, fastThreshold=30)  # type: ignore[attr-defined]
    _, descriptors = orb.detectAndCompute(image, None)
    if descriptors is None:
        return np.empty(0, np.uint64)
    return np.unique(descriptors.view(np.uint32) | _WORD_PLACES)


def _images_by_words(words: Sequence[NDArray[np.uint64]]) -> csr_array:
    """Sparse 0/1 ``[images, words]`` of the words that at least two, but not too many, hold."""
    image = np.repeat(np.arange(len(words)), [len(w) for w in words])
    _, word, holders = np.unique(np.concatenate(words), return_inverse=True, return_counts=True)
    kept = (holders[word] > 1) & (holders[word] <= MAX_IMAGES_PER_WORD)
    entries = np.ones(kept.sum(), np.float32), (image[kept], word[kept])
    return csr_array(entries, shape=(len(words), max(1, len(holders))))


def _same(groups: Sequence[Hashable | None]) -> NDArray[np.intp]:
    """``[links, 2]``: every image with the first of its group."""
    first: dict[Hashable, int] = {}
    pairs = [(i, first.setdefault(g, i)) for i, g in enumerate(groups) if g is not None]
    return np.array(pairs, np.intp).reshape(-1, 2)
