"""The metrics of :mod:`dmf_plugins.metrics` as an MMSegmentation evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.logging import MMLogger, print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from prettytable import PrettyTable
from torch import Tensor

from dmf_plugins.metrics import (
    confusion_counts,
    detection_scores,
    lesion_counts,
    metrics_from_counts,
    surface_distances,
)
from dmf_plugins.metrics.lesions import COUNTED
from dmf_plugins.metrics.segmentation import nanmean


@METRICS.register_module()
class DMFMetric(IoUMetric):
    """Overlap scores in percent, under both conventions, and a table per class.

    ``lesion_*``: foreground classes, per image, mean over images; an image without lesion that is
    predicted empty is left out. ``paper_*``: all classes including background, counts pooled over
    the data set, as the DMF paper reports. Each for dice, iou, precision, recall and f1, with
    ``accuracy`` and ``cb_dice`` (pooled), and the means of
    :func:`~dmf_plugins.metrics.detection_scores`, all in percent but ``false_lesions`` and
    ``false_alarm_pixels``. With ``tolerance`` also ``surface_dice``, per image as ``lesion_*``. Use e.g.
    ``save_best='lesion_dice', rule='greater'``.

    Args:
        tolerance: of surface Dice, in pixels; None to leave it out, since it takes most of the time.
        ignore_index, output_dir, format_only, collect_device, prefix: of mmseg's ``IoUMetric``;
            ``output_dir`` receives the predictions as PNG label maps, which ``dmf evaluate`` reads.
    """

    def __init__(self, *args: Any, tolerance: float | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tolerance = tolerance

    def intersect_and_union(
        self, pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> Any:
        """What ``IoUMetric`` keeps of an image; here confusion matrix, lesions and surface Dice."""
        pred, target = (labels.cpu().numpy() for labels in (pred_label, label))
        counts = confusion_counts(pred, target, num_classes, ignore_index)
        keep = target != ignore_index
        masks = [((pred == r) & keep, (target == r) & keep) for r in range(1, num_classes)]
        near = [
            surface_distances(*pair, tolerance=self.tolerance).surface_dice
            for pair in masks
            if self.tolerance is not None
        ]
        return counts, np.sum([lesion_counts(*pair) for pair in masks], axis=0), near

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        if self.format_only:
            return super().compute_metrics(results)
        counts, lesions, near = (np.stack(parts) for parts in zip(*results, strict=True))
        images = metrics_from_counts(list(counts))
        pooled = metrics_from_counts([counts.sum(axis=0)])
        table = PrettyTable()
        table.add_column("Class", list(self.dataset_meta["classes"]))
        for name, values in pooled.per_class.items():
            table.add_column(name, [f"{100 * value:.2f}" for value in values])
        print_log(
            f"per class, pooled over the data set:\n{table}", logger=MMLogger.get_current_instance()
        )
        scores = {f"lesion_{name}": value for name, value in images.lesion.items()}
        scores |= {f"paper_{name}": value for name, value in pooled.paper.items()}
        scores |= {"accuracy": pooled.accuracy, "cb_dice": pooled.cb_dice}
        scores = {name: 100 * value for name, value in scores.items()}
        true, predicted = counts.sum(axis=2)[:, 1:], counts.sum(axis=1)[:, 1:]
        detected = detection_scores(lesions, true.sum(axis=1), predicted.sum(axis=1))
        if self.tolerance is not None:
            detected["surface_dice"] = nanmean(near, -1)
        for name, values in detected.items():
            if not np.isnan(values).all():
                scores[name] = float(np.nanmean(values)) * (1 if name in COUNTED else 100)
        return {name: round(value, 2) for name, value in scores.items()}
