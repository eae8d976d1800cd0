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
)
from dmf_plugins.metrics.lesions import COUNTED


@METRICS.register_module()
class DMFMetric(IoUMetric):
    """Overlap scores in percent, under both conventions, and a table per class.

    ``lesion_*``: foreground classes, per image, mean over images; an image without lesion that is
    predicted empty is left out. ``paper_*``: all classes including background, counts pooled over
    the data set, as the DMF paper reports. Each for dice, iou, precision, recall and f1, with
    ``accuracy`` and ``cb_dice`` (pooled), and the means of
    :func:`~dmf_plugins.metrics.detection_scores`, all in percent but ``false_lesions`` and
    ``false_alarm_pixels``. Use e.g. ``save_best='lesion_dice', rule='greater'``.

    Args:
        ignore_index, output_dir, format_only, collect_device, prefix: of mmseg's ``IoUMetric``;
            ``output_dir`` receives the predictions as PNG label maps, which ``dmf evaluate`` reads.
    """

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> Any:
        """What ``IoUMetric`` keeps of an image; here its confusion matrix and lesions."""
        pred, target = (labels.cpu().numpy() for labels in (pred_label, label))
        counts = confusion_counts(pred, target, num_classes, ignore_index)
        keep = target != ignore_index
        masks = [((pred == r) & keep, (target == r) & keep) for r in range(1, num_classes)]
        return counts, np.sum([lesion_counts(*pair) for pair in masks], axis=0)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        if self.format_only:
            return super().compute_metrics(results)
        counts, lesions = (np.stack(parts) for parts in zip(*results, strict=True))
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
        for name, values in detected.items():
            if not np.isnan(values).all():
                scores[name] = float(np.nanmean(values)) * (1 if name in COUNTED else 100)
        return {name: round(value, 2) for name, value in scores.items()}
