"""The metrics of :mod:`dmf_plugins.metrics` as an MMSegmentation evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from dmf_plugins.metrics import confusion_counts, metrics_from_counts


@METRICS.register_module()
class DMFMetric(BaseMetric):
    """Overlap scores in percent, under both conventions.

    ``lesion_*``: foreground classes, per image, mean over images; an image without lesion that is
    predicted empty is left out. ``paper_*``: all classes including background, counts pooled over
    the data set, as the DMF paper reports. Each for dice, iou, precision, recall and f1, with
    ``accuracy`` and ``cb_dice`` (pooled). Use e.g. ``save_best='lesion_dice', rule='greater'``.

    Args:
        ignore_index: label left out.
        **kwargs: ``collect_device`` and ``prefix`` of mmengine's ``BaseMetric``.
    """

    def __init__(self, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            pred, target = (
                sample[key]["data"].squeeze().cpu().numpy()
                for key in ("pred_sem_seg", "gt_sem_seg")
            )
            self.results.append(confusion_counts(pred, target, classes, self.ignore_index))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        images = metrics_from_counts(results)
        pooled = metrics_from_counts([np.sum(results, axis=0)])
        scores = {f"lesion_{name}": value for name, value in images.lesion.items()}
        scores |= {f"paper_{name}": value for name, value in pooled.paper.items()}
        scores |= {"accuracy": pooled.accuracy, "cb_dice": pooled.cb_dice}
        return {name: round(100 * value, 2) for name, value in scores.items()}
