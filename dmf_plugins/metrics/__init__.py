"""Metrics on label maps: overlap, surface distance, and the evaluation of folders."""

from dmf_plugins.metrics.compare import compare_runs
from dmf_plugins.metrics.distance import SurfaceDistances, surface_distances
from dmf_plugins.metrics.evaluate import Evaluation, evaluate_folders
from dmf_plugins.metrics.lesions import LesionCounts, detection_scores, lesion_counts
from dmf_plugins.metrics.segmentation import (
    SegmentationMetrics,
    confusion_counts,
    metrics_from_counts,
    segmentation_metrics,
)

__all__ = [
    "Evaluation",
    "LesionCounts",
    "SegmentationMetrics",
    "SurfaceDistances",
    "compare_runs",
    "confusion_counts",
    "detection_scores",
    "evaluate_folders",
    "lesion_counts",
    "metrics_from_counts",
    "segmentation_metrics",
    "surface_distances",
]
