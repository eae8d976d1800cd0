"""Perceptual grouping, so that copies of one image never sit on both sides of a split.

The rule was measured on the whole of BUSI: two images belong together when their 32x32 thumbnails
correlate above 0.97 and their 256-bit difference hashes differ in at most 30 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dmf_plugins.data.images import Gray

MIN_CORRELATION = 0.97
MAX_HASH_DISTANCE = 30
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Fingerprint:
    """Small summary of an image: standardised 32x32 thumbnail and the 256 bits of its dHash."""

    thumbnail: NDArray[np.float32]
    bits: NDArray[np.float32]

    @classmethod
    def of(cls, image: Gray) -> Fingerprint:
        """Fingerprint of an ``[H, W]`` uint8 image."""
        small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        small -= small.mean()
        norm = np.linalg.norm(small)
        columns = cv2.resize(image, (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
        bits = (np.diff(columns, axis=1) > 0).astype(np.float32).ravel()
        return cls(small / norm if norm > 0 else small, bits)


def group_duplicates(fingerprints: list[Fingerprint]) -> NDArray[np.intp]:
    """Group number of every image; images linked through near copies share one.

    Returns:
        ``[n]`` integers, numbered by first appearance.
    """
    thumbnails = np.stack([f.thumbnail for f in fingerprints])
    bits = np.stack([f.bits for f in fingerprints])
    n = len(fingerprints)
    links: list[NDArray[np.intp]] = []
    for start in range(0, n, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, n)
        alike = thumbnails[start:stop] @ thumbnails.T > MIN_CORRELATION
        # |a - b| = a (1 - b) + (1 - a) b for 0/1 vectors
        a = bits[start:stop]
        distance = a @ (1 - bits).T + (1 - a) @ bits.T
        rows, columns = np.nonzero(alike & (distance <= MAX_HASH_DISTANCE))
        links.append(np.stack((rows + start, columns)))
    rows, columns = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    first_seen = {label: i for i, label in reversed(list(enumerate(labels)))}
    order = {
        label: rank for rank, label in enumerate(sorted(first_seen, key=first_seen.__getitem__))
    }
    return np.array([order[label] for label in labels], dtype=np.intp)
