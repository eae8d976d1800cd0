"""Data set, transform and metric."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dmf_plugins.data import convert_dataset
from dmf_plugins.errors import DataError
from dmf_plugins.metrics import lesion_counts, segmentation_metrics, surface_distances

from .support import train  # noqa: F401  skips where MMSegmentation is absent

# isort: split
from mmengine.logging import MMLogger
from mmseg.registry import DATASETS, METRICS, TRANSFORMS

import dmf_plugins.mmseg as plugin

PARTS = dict(img_path="img_dir/train", seg_map_path="ann_dir/train")


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A converted data set of its own to spoil."""
    return Path(shutil.copytree(data / "BUSI", tmp_path / "BUSI"))


def test_dataset_reads_what_the_converter_wrote(data):
    dataset = DATASETS.build(
        dict(
            type="BreastUltrasoundDataset",
            data_root=str(data / "BUSI"),
            data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
            pipeline=[dict(type="LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")],
        )
    )
    assert dataset.metainfo["classes"] == ("background", "lesion")
    assert not dataset.metainfo["reduce_zero_label"]
    assert len(dataset) == len(list((data / "BUSI/img_dir/train").iterdir()))
    assert set(np.unique(dataset[0]["gt_seg_map"])) == {0, 1}
    three = plugin.BreastUltrasoundDataset(
        labels="benign-malignant", data_root=str(data / "BUSI"), lazy_init=True,
        data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
    )  # fmt: skip
    assert three.metainfo["classes"][2] == "malignant"
    with pytest.raises(ValueError, match="labels"):
        plugin.BreastUltrasoundDataset(labels="cyst")


def test_transform_filters_as_the_converter_does(phantoms, data):
    convert_dataset("busi", phantoms, "mmseg", output=data / "native")
    source = phantoms / "benign/benign (1).png"
    load = TRANSFORMS.build(dict(type="LoadImageFromFile"))
    step = TRANSFORMS.build(dict(type="BilateralFilter"))
    result = step(load(dict(img_path=str(source))))
    converted = next((data / "native/BUSI/img_dir").glob("*/benign_001.png"))
    expected = load(dict(img_path=str(converted)))["img"]
    np.testing.assert_array_equal(result["img"], expected)
    with pytest.raises(TypeError, match="right after LoadImageFromFile"):
        step(dict(img=np.zeros((4, 4), np.float32)))


def test_metric_is_segmentation_metrics_in_percent():
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 2, (2, 5, 9, 9))
    target[0] = pred[0] = 0
    metric = METRICS.build(dict(type="DMFMetric", tolerance=0.5))
    metric.dataset_meta = dict(classes=("background", "lesion"))
    for p, t in zip(pred, target, strict=True):
        sample = {
            k: dict(data=torch.tensor(v)[None]) for k, v in (("pred_sem_seg", p), ("gt_sem_seg", t))
        }
        metric.process({}, [sample])
    scores = metric.evaluate(5)
    lesion = segmentation_metrics(pred, target, 2, aggregate="image").lesion["dice"]
    paper = segmentation_metrics(pred, target, 2).paper["iou"]
    assert scores["lesion_dice"] == pytest.approx(100 * lesion, abs=0.01)
    assert scores["paper_iou"] == pytest.approx(100 * paper, abs=0.01)
    parts = np.stack([lesion_counts(p, t) for p, t in zip(pred, target, strict=True)])
    assert scores["lesions_found"] == pytest.approx(
        100 * np.mean(parts[1:, 1] / parts[1:, 0]), abs=0.01
    )
    assert scores["false_lesions"] == pytest.approx(parts[:, 2].mean(), abs=0.01)
    assert scores["false_alarms"] == 0  # of the one image without a lesion
    near = [
        surface_distances(p, t, tolerance=0.5).surface_dice
        for p, t in zip(pred[1:], target[1:], strict=True)
    ]
    assert scores["surface_dice"] == pytest.approx(100 * np.mean(near), abs=0.01)


def test_the_classes_come_from_what_was_converted(phantoms, tmp_path):
    convert_dataset(
        "busi", phantoms, "mmseg", output=tmp_path, size=(64, 64), labels="benign-malignant"
    )
    options = dict(data_root=str(tmp_path / "BUSI"), data_prefix=PARTS)
    assert plugin.BreastUltrasoundDataset(**options).metainfo["classes"] == (
        "background",
        "benign",
        "malignant",
    )
    with pytest.raises(DataError, match=r"malignant_\d+\.png holds the label 2, but there are 2"):
        plugin.BreastUltrasoundDataset(labels="lesion", **options)


def test_data_that_were_never_converted_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no \.png images in .*img_dir/train; convert it: dmf"):
        plugin.BreastUltrasoundDataset(data_root=str(tmp_path), data_prefix=PARTS)


def test_masks_of_0_and_255_are_refused(copy):
    options = dict(data_root=str(copy), data_prefix=PARTS)
    masks = sorted((copy / "ann_dir/train").iterdir())
    for path in masks:
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) * 255)
    with pytest.raises(DataError, match="0 and 255 alone"):
        plugin.BreastUltrasoundDataset(**options)
    cv2.imwrite(str(masks[0]), np.full((64, 64), 7, np.uint8))
    with pytest.raises(DataError, match=rf"{masks[0].name} holds the label 7"):
        plugin.BreastUltrasoundDataset(**options)
    masks[0].unlink()
    with pytest.raises(DataError, match=rf"{masks[0].name} is missing"):
        plugin.BreastUltrasoundDataset(**options)


def test_metric_writes_label_maps_and_a_table_per_class(tmp_path):
    MMLogger.get_instance(str(tmp_path), log_file=str(tmp_path / "log.txt"))
    metric = METRICS.build(dict(type="DMFMetric", output_dir=str(tmp_path), keep_results=True))
    metric.dataset_meta = dict(classes=("background", "lesion"))
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    label[:, :4] = 1
    sample = dict(pred_sem_seg=dict(data=label), gt_sem_seg=dict(data=label), img_path="a/b.png")
    metric.process({}, [sample])
    assert metric.evaluate(1)["lesion_dice"] == 100
    table = (tmp_path / "log.txt").read_text()
    assert "| background | 100.00 |" in " ".join(table.split())
    written = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, label[0].numpy())
    only = METRICS.build(dict(type="DMFMetric", output_dir=str(tmp_path), format_only=True))
    only.dataset_meta = metric.dataset_meta
    only.process({}, [dict(pred_sem_seg=dict(data=label), img_path="a/c.png")])
    assert only.evaluate(1) == {}
    assert (tmp_path / "c.png").exists()
