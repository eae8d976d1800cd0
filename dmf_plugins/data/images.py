"""Decoding, filtering and resizing of single images."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.errors import DataError, UsageError

Gray = NDArray[np.uint8]
IMAGE_SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"}
MIN_SIDE, MAX_SIDE = 8, 8192


def bilateral_filter(
    image: Gray,
    diameter: int = BilateralParameters.diameter,
    sigma_color: float = BilateralParameters.sigma_color,
    sigma_space: float = BilateralParameters.sigma_space,
) -> Gray:
    """Edge-preserving smoothing of speckle (Eq. 26-27), by OpenCV.

    Args:
        image: ``[H, W]`` uint8.
        diameter, sigma_color, sigma_space: see :class:`BilateralParameters`.

    Returns:
        ``[H, W]`` uint8.

    Raises:
        ValueError: ``image`` is not 2-D uint8.
        UsageError: a parameter is out of range.
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"image must be [H, W] uint8, got {image.shape} {image.dtype}")
    BilateralParameters(diameter, sigma_color, sigma_space)
    return cv2.bilateralFilter(image, diameter, sigma_color, sigma_space)  # type: ignore[return-value]


def decode_gray(content: bytes, where: str) -> Gray:
    """8-bit grey image ``[H, W]`` from an encoded file; ``where`` names it in errors.

    Colour is converted by ITU-R 601 luma; an alpha channel is dropped.

    Raises:
        DataError: the file is damaged, empty, animated, of more than 8 bits, or implausibly large.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{where} holds several frames; save the one you want")
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{where} has more than 8 bits a pixel (mode {image.mode}); convert it to 8-bit grey"
                )
            return np.asarray(image.convert("L"), dtype=np.uint8)
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is not a readable image ({error}); download it again") from error


def merge_masks(masks: list[tuple[str, Gray]], shape: tuple[int, ...], threshold: int) -> Gray:
    """Union of the lesion masks of one image as 0/1 ``[H, W]`` uint8.

    Args:
        masks: name for messages and grey values of each mask.
        shape: height and width of the image.
        threshold: a pixel is lesion where the mask exceeds it (0..254).

    Raises:
        DataError: a mask has another size than the image, or is not empty but nowhere exceeds the
            threshold, as one stored as 0/1.
    """
    merged = np.zeros(shape, dtype=bool)
    for where, mask in masks:
        if mask.shape != shape:
            raise DataError(
                f"{where} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}; "
                "fix the file, or leave such cases out with --skip-invalid"
            )
        if 0 < mask.max() <= threshold:
            raise DataError(
                f"{where} has no value above the threshold {threshold}, its largest is {mask.max()}; "
                "for masks stored as 0/1 give --threshold 0"
            )
        merged |= mask > threshold
    return merged.astype(np.uint8)


def check_size(size: tuple[int, int] | None) -> None:
    """Raise ``UsageError`` unless ``size`` is None or a (width, height) an image can be resized to."""
    if size is not None and not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise UsageError(
            f"size must lie between {MIN_SIDE}x{MIN_SIDE} and {MAX_SIDE}x{MAX_SIDE}, "
            f"got {'x'.join(map(str, size))}"
        )


def prepare_image(
    image: Gray, bilateral: BilateralParameters | None, size: tuple[int, int] | None
) -> Gray:
    """Filter at native resolution, then resize to ``size`` (width, height)."""
    if bilateral is not None:
        image = bilateral_filter(image, *vars(bilateral).values())
    if size is not None:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return image


def resize_label(label: Gray, size: tuple[int, int] | None) -> Gray:
    """Nearest-neighbour resize, so that no label is invented."""
    if size is None:
        return label
    return cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]


def encode_png(image: Gray) -> bytes:
    """Single-channel 8-bit PNG."""
    return cv2.imencode(".png", image)[1].tobytes()
