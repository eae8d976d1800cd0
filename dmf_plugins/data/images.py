"""Decoding, filtering and resizing of single images."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmf_plugins.errors import DataError, UsageError

Gray = NDArray[np.uint8]
IMAGE_SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"}


@dataclass(frozen=True)
class BilateralParameters:
    """Parameters of the bilateral filter (Eq. 26-27) in OpenCV's terms.

    The paper states no values. The defaults are OpenCV's customary 9 / 75 / 75 for 8-bit images.

    Args:
        diameter: width of the neighbourhood Omega, pixels, odd.
        sigma_color: sigma_r, grey levels (of 255).
        sigma_space: sigma_s, pixels.

    Raises:
        UsageError: a value is out of range.
    """

    diameter: int = 9
    sigma_color: float = 75.0
    sigma_space: float = 75.0

    def __post_init__(self) -> None:
        if self.diameter < 1 or self.diameter % 2 == 0:
            raise UsageError(f"bilateral diameter must be odd and positive, got {self.diameter}")
        for name in ("sigma_color", "sigma_space"):
            if not getattr(self, name) > 0:
                raise UsageError(f"bilateral {name} must be positive, got {getattr(self, name)}")


def bilateral_filter(
    image: Gray, diameter: int = 9, sigma_color: float = 75.0, sigma_space: float = 75.0
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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is not a readable image ({error}); download it again") from error


def merge_masks(masks: list[tuple[str, Gray]], shape: tuple[int, int], threshold: int) -> Gray:
    """Union of the lesion masks of one image as 0/1 ``[H, W]`` uint8.

    Args:
        masks: name for messages and grey values of each mask.
        shape: height and width of the image.
        threshold: a pixel is lesion where the mask exceeds it (0..254).

    Raises:
        DataError: a mask has another size than the image.
    """
    merged = np.zeros(shape, dtype=bool)
    for where, mask in masks:
        if mask.shape != shape:
            raise DataError(
                f"{where} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}; "
                "mend the file, or leave such cases out with --skip-invalid"
            )
        merged |= mask > threshold
    return merged.astype(np.uint8)


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
