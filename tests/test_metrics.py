"""Hard metrics against scikit-learn and the released code's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score, precision_recall_fscore_support

from dmf_plugins.metrics import segmentation_metrics

from .conftest import shared


@given(seed=st.integers(0, 50), classes=st.integers(2, 5))
def test_per_class_scores_are_scikit_learns(seed, classes):
    rng = np.random.default_rng(seed)
    pred, target = rng.integers(0, classes, (2, 3, 9, 8))
    ours = segmentation_metrics(pred, target, classes)
    p, t, labels = pred.ravel(), target.ravel(), range(classes)
    precision, recall, f1, _ = precision_recall_fscore_support(t, p, labels=labels, zero_division=0)
    np.testing.assert_allclose(ours.per_class["precision"], precision)
    np.testing.assert_allclose(ours.per_class["recall"], recall)
    np.testing.assert_allclose(ours.per_class["f1"], f1)
    np.testing.assert_allclose(ours.per_class["dice"], f1)
    np.testing.assert_allclose(
        ours.per_class["iou"], jaccard_score(t, p, labels=labels, average=None)
    )
    assert ours.accuracy == pytest.approx(accuracy_score(t, p))
    assert ours.lesion["dice"] == pytest.approx(f1[1:].mean())
    assert ours.paper["dice"] == pytest.approx(f1.mean())


def test_golden_scores_where_the_definitions_coincide():
    compared = 0
    for case in json.loads(shared("golden/reference_metrics.json").read_text())["cases"]:
        present = {c for image in case["gt"] for row in image for c in row}
        if case["sigmoid"] or len(present) < case["C"]:
            continue  # it scores absent classes 0 or 1, we leave them out
        ours = segmentation_metrics(case["pred"], case["gt"], case["C"])
        np.testing.assert_allclose(ours.per_class["dice"], case["out"]["per_class_dice"], atol=1e-5)
        for name in ("dice", "iou", "precision", "recall"):
            assert ours.paper[name] == pytest.approx(case["out"][name], abs=1e-5), case["name"]
        compared += 1
    assert compared >= 5


def test_empty_masks_neither_help_nor_hurt_and_false_alarms_cost():
    target = np.zeros((3, 8, 8), int)
    target[0, :4] = 1
    pred = target.copy()
    assert segmentation_metrics(pred, target, 2, aggregate="image").lesion["dice"] == 1
    pred[1, 0, 0] = 1
    assert segmentation_metrics(pred, target, 2, aggregate="image").lesion["dice"] == 0.5
    empty = segmentation_metrics(target[1:], target[1:], 2)
    assert np.isnan(empty.lesion["dice"])
    assert empty.paper["dice"] == 1


def test_image_aggregation_is_the_mean_over_images():
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 3, (2, 4, 6, 6))
    images = [
        segmentation_metrics(p, t, 3).lesion["iou"] for p, t in zip(pred, target, strict=True)
    ]
    ours = segmentation_metrics(pred, target, 3, aggregate="image")
    assert ours.lesion["iou"] == pytest.approx(np.mean(images))


def test_ignored_pixels_do_not_count():
    pred, target = np.array([[0, 1, 1, 0]]), np.array([[0, 1, 9, 9]])
    assert segmentation_metrics(pred, target, 2, ignore_index=9).accuracy == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="shape"):
        segmentation_metrics(np.zeros(3), np.zeros(4), 2)
    with pytest.raises(ValueError, match=r"target holds labels 0\.\.255"):
        segmentation_metrics([0, 1], [0, 255], 2)
    with pytest.raises(ValueError, match="aggregate"):
        segmentation_metrics([0], [0], 2, aggregate="batch")
