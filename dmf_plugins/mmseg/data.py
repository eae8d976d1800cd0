"""Data set and transform for the converted breast-ultrasound data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS

from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.data.images import bilateral_filter
from dmf_plugins.data.options import LABELS
from dmf_plugins.errors import DataError

_PALETTE = [[0, 0, 0], [255, 200, 60], [255, 80, 80]]
_CONVERT = (
    "convert it: dmf convert busi SRC --to mmseg --output FOLDER; then set dataset.data_root='FOLDER/BUSI' "
    "in train_dataloader, val_dataloader and test_dataloader"
)


@DATASETS.register_module()
class BreastUltrasoundDataset(BaseSegDataset):
    """BUSI, BUSC or BUS as ``dmf convert ... --to mmseg`` writes them.

    ``img_dir/{train,val,test}/*.png`` and ``ann_dir/{train,val,test}/*.png`` with labels from 0;
    ``reduce_zero_label`` stays off, since 0 is the background. Masks are checked when it is built.

    Args:
        labels: ``lesion`` (two classes) or ``benign-malignant`` (three); None reads the classes
            from ``dataset.json``, which the converter left in ``data_root``.
        **kwargs: arguments of mmseg's ``BaseSegDataset``.

    Raises:
        ValueError: ``labels`` is neither.
        DataError: there are no images, or masks with other labels than the classes.
    """

    METAINFO = {"classes": tuple(LABELS["lesion"]), "palette": _PALETTE[:2]}

    def __init__(self, labels: str | None = None, **kwargs: Any) -> None:
        if labels is not None and labels not in LABELS:
            raise ValueError(f"labels must be one of {sorted(LABELS)}, got {labels!r}")
        written = Path(kwargs.get("data_root") or "") / "dataset.json"
        if labels is None and written.is_file():
            classes = tuple(json.loads(written.read_text(encoding="utf-8"))["classes"])
        else:
            classes = tuple(LABELS[labels or "lesion"])
        metainfo = {"classes": classes, "palette": _PALETTE[: len(classes)]}
        metainfo |= kwargs.pop("metainfo", None) or {}
        options = {"img_suffix": ".png", "seg_map_suffix": ".png", "reduce_zero_label": False}
        super().__init__(metainfo=metainfo, **{**options, **kwargs})

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> None:
        """None: label files hold the numbers of the classes already, there is nothing to map."""

    def load_data_list(self) -> list[dict[str, Any]]:
        folder = Path(self.data_prefix["img_path"])
        if not any(folder.glob(f"**/*{self.img_suffix}")):
            raise DataError(f"no {self.img_suffix} images in {folder}; {_CONVERT}")
        found = super().load_data_list()
        if not self.reduce_zero_label:
            _check_masks([f["seg_map_path"] for f in found if "seg_map_path" in f], self)
        return found


def _check_masks(paths: list[str], dataset: BaseSegDataset) -> None:
    """Raise unless every mask holds the labels of the data set's classes."""
    classes, ignored = dataset.metainfo["classes"], dataset.ignore_index
    seen = np.zeros(256, np.int64)
    for path in paths:
        mask = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
            raise DataError(f"{path} is missing or not an 8-bit image of one channel; {_CONVERT}")
        seen += np.bincount(mask.ravel(), minlength=256)
        strange = [v for v in np.flatnonzero(seen) if v >= len(classes) and v != ignored]
        if strange:
            raise DataError(
                f"{path} holds the label {strange[0]}, but there are {len(classes)} classes, "
                f"{', '.join(classes)}: labels must be 0 to {len(classes) - 1}. For benign and "
                "malignant use labels='benign-malignant' and num_classes=3; for masks of 0 and 255 "
                f"{_CONVERT}"
            )
    if seen[ignored] and not seen[1 : len(classes)].any():
        raise DataError(
            f"the masks of {Path(paths[0]).parent} hold 0 and {ignored} alone, and {ignored} is left "
            f"out of the training, so there is nothing to find; {_CONVERT}"
        )


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
