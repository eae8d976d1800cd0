"""Synthetic breast ultrasound in BUSI's layout, to try everything without patient data.

The image model is the usual one for B-mode speckle: the envelope of a complex Gaussian field,
correlated over a resolution cell, multiplies the echogenicity of the tissue (Wagner et al.,
"Statistics of speckle in ultrasound B-scans", IEEE Trans. Sonics Ultrason. 30(3), 1983), followed
by log compression. Lesions are hypoechoic: benign ones elliptical with echo enhancement below,
malignant ones lobulated with an acoustic shadow.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dmf_plugins.atomic import building
from dmf_plugins.data.images import Gray, encode_png
from dmf_plugins.progress import track

ROOT = "Dataset_BUSI_with_GT"
Field = NDArray[np.float32]


def generate_phantoms(
    output: str | Path,
    *,
    benign: int = 40,
    malignant: int = 20,
    normal: int = 6,
    side: tuple[int, int] = (112, 160),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write ``output/Dataset_BUSI_with_GT/{benign,malignant,normal}/benign (1).png`` and masks.

    Every sixth lesion image has a second lesion with a mask file of its own, as in BUSI.

    Args:
        output: folder to create ``Dataset_BUSI_with_GT`` in.
        benign, malignant, normal: number of images.
        side: smallest and largest width and height, pixels.
        seed: same seed, same files.
        overwrite: replace an existing data set.
        progress: show a progress bar on stderr.

    Returns:
        The data set folder.

    Raises:
        UsageError: it exists and ``overwrite`` is off, or holds something else.
    """
    target = Path(output) / ROOT
    todo = [("benign", benign), ("malignant", malignant), ("normal", normal)]
    jobs = [(category, i + 1) for category, count in todo for i in range(count)]
    with building(target, "demo", overwrite) as folder:
        for category, _ in todo:
            (folder / category).mkdir()
        for job, (category, number) in enumerate(track(jobs, "phantoms", progress)):
            rng = np.random.default_rng((seed, job))
            lesions = 0 if category == "normal" else 2 if number % 6 == 0 else 1
            height, width = rng.integers(side[0], side[1] + 1, size=2)
            image, masks = phantom(rng, int(height), int(width), category == "malignant", lesions)
            stem = folder / category / f"{category} ({number})"
            Path(f"{stem}.png").write_bytes(encode_png(image))
            for i, mask in enumerate(masks or [np.zeros_like(image)]):
                suffix = "" if i == 0 else f"_{i}"
                Path(f"{stem}_mask{suffix}.png").write_bytes(encode_png(mask))
    return target


def phantom(
    rng: np.random.Generator, height: int, width: int, malignant: bool, lesions: int
) -> tuple[Gray, list[Gray]]:
    """One image ``[height, width]`` uint8 and the 0/255 mask of each lesion."""
    echo = np.exp(0.35 * _smooth_noise(rng, height, width, cell=(4, width / 12)))
    echo *= np.exp(0.25 * _smooth_noise(rng, height, width, cell=(height / 8, width / 4)))
    masks: list[Gray] = []
    taken = np.zeros((height, width), bool)
    for _ in range(lesions):
        for _ in range(20):
            mask = _lesion(rng, height, width, malignant, small=bool(masks))
            if not (cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0)[taken].any():
                break
        else:
            continue
        taken |= mask > 0
        masks.append(mask)
        soft = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 1.2)
        # below the lesion: shadow of a malignant, enhancement of a cystic benign one
        below = np.maximum.accumulate(soft, axis=0) * (1 - soft)
        echo *= np.exp(below * (-0.7 if malignant else 0.5))
        echo *= 1 - soft * rng.uniform(0.72, 0.88)
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    echo *= np.exp(-0.9 * depth)
    real, imaginary = (_smooth_noise(rng, height, width, cell=(1.0, 1.6)) for _ in range(2))
    envelope = echo * np.sqrt(real**2 + imaginary**2)
    compressed = 20 * np.log10(envelope + 1e-3)
    top = np.percentile(compressed, 99.5)
    image = np.clip((compressed - top + 50) / 50, 0, 1)
    return (255 * image).round().astype(np.uint8), masks


def _smooth_noise(
    rng: np.random.Generator, height: int, width: int, cell: tuple[float, float]
) -> Field:
    """Gaussian field of unit variance with correlation lengths ``cell`` (rows, columns), pixels."""
    white = rng.standard_normal((height, width)).astype(np.float32)
    field = cv2.GaussianBlur(white, (0, 0), sigmaX=cell[1], sigmaY=cell[0])
    return field / field.std()


def _lesion(
    rng: np.random.Generator, height: int, width: int, malignant: bool, small: bool
) -> Gray:
    """0/255 mask of one lesion: an ellipse, its outline lobulated when malignant."""
    scale = min(height, width) * (0.5 if small else 1)
    a, b = scale * rng.uniform(0.14, 0.26), scale * rng.uniform(0.10, 0.18)
    centre = rng.uniform(0.28, 0.72) * width, rng.uniform(0.25, 0.6) * height
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = np.ones_like(angle)
    if malignant:
        for lobes in (3, 5, 8):
            radius += rng.uniform(0.05, 0.5 / lobes) * np.cos(lobes * angle + rng.uniform(0, 6.3))
    tilt = rng.uniform(-0.5, 0.5)
    x, y = a * radius * np.cos(angle), b * radius * np.sin(angle)
    outline = np.stack(
        (
            centre[0] + x * np.cos(tilt) - y * np.sin(tilt),
            centre[1] + x * np.sin(tilt) + y * np.cos(tilt),
        ),
        axis=1,
    )
    mask = np.zeros((height, width), np.uint8)
    return cv2.fillPoly(mask, [outline.round().astype(np.int32)], 255)  # type: ignore[return-value]
