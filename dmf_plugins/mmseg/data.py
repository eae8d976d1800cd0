"""Data set and transform for the converted breast-ultrasound data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS

from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.data.images import bilateral_filter
from dmf_plugins.data.options import LABELS

_PALETTE = [[0, 0, 0], [255, 200, 60], [255, 80, 80]]
_METAINFO = {
    scheme: {"classes": tuple(labels), "palette": _PALETTE[: len(labels)]}
    for scheme, labels in LABELS.items()
}


@DATASETS.register_module()
class BreastUltrasoundDataset(BaseSegDataset):
    """BUSI, BUSC or BUS as ``dmf convert ... --to mmseg`` writes them.

    ``img_dir/{train,val,test}/*.png`` and ``ann_dir/{train,val,test}/*.png`` with labels from 0;
    ``reduce_zero_label`` stays off, since 0 is the background.

    Args:
        labels: ``lesion`` (two classes) or ``benign-malignant`` (three), as converted.
        **kwargs: arguments of mmseg's ``BaseSegDataset``.

    Raises:
        ValueError: ``labels`` is neither.
    """

    METAINFO = _METAINFO["lesion"]

    def __init__(self, labels: str = "lesion", **kwargs: Any) -> None:
        if labels not in _METAINFO:
            raise ValueError(f"labels must be one of {sorted(_METAINFO)}, got {labels!r}")
        metainfo = {**_METAINFO[labels], **(kwargs.pop("metainfo", None) or {})}
        options = {"img_suffix": ".png", "seg_map_suffix": ".png", "reduce_zero_label": False}
        super().__init__(metainfo=metainfo, **{**options, **kwargs})

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> None:
        """None: label files hold the numbers of ``labels`` already, there is nothing to map."""


@TRANSFORMS.register_module()
class BilateralFilter(BaseTransform):
    """The converter's speckle filter as a pipeline step, for images that were not converted.

    A colour image is filtered as grey, as the converter does, and keeps its number of channels.

    Required keys: ``img``. Modified keys: ``img``.

    Args:
        diameter, sigma_color, sigma_space: :class:`~dmf_plugins.data.BilateralParameters`.
    """

    def __init__(
        self,
        diameter: int = BilateralParameters.diameter,
        sigma_color: float = BilateralParameters.sigma_color,
        sigma_space: float = BilateralParameters.sigma_space,
    ) -> None:
        self.parameters = BilateralParameters(diameter, sigma_color, sigma_space)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = results["img"]
        if image.dtype != np.uint8:
            raise TypeError(
                f"BilateralFilter needs uint8 images, got {image.dtype}; put it right after "
                "LoadImageFromFile"
            )
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
        filtered = bilateral_filter(gray, *vars(self.parameters).values())
        results["img"] = (
            np.repeat(filtered[..., None], image.shape[2], axis=2) if image.ndim == 3 else filtered
        )
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.parameters})"
