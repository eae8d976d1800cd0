"""Metrics on label maps."""

from dmf_plugins.metrics.segmentation import (
    SegmentationMetrics,
    confusion_counts,
    metrics_from_counts,
    segmentation_metrics,
)

__all__ = ["SegmentationMetrics", "confusion_counts", "metrics_from_counts", "segmentation_metrics"]
