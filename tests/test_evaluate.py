"""Evaluation and comparison of folders, against MONAI, SciPy and by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from PIL import Image
from scipy.stats import wilcoxon
from torchmetrics.functional.segmentation import dice_score

from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.metrics import (
    compare_runs,
    evaluate_folders,
    lesion_counts,
    segmentation_metrics,
)
from dmf_plugins.metrics.compare import wilcoxon_p
from dmf_plugins.metrics.distance import surface_distances
from dmf_plugins.metrics.evaluate import bootstrap_interval
from dmf_plugins.metrics.labelmaps import parse_labels
from dmf_plugins.report.evaluation import evaluation_markdown, write_evaluation

from .support.commands import dmf

LESION = {"lesion": 1}


def disc(side: int, row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return ((y - row) ** 2 + (x - column) ** 2 <= radius**2).astype(np.uint8)


def write(folder: Path, maps: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in maps.items():
        Image.fromarray(labels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Eight images of two classes: good, empty, missed and false predictions."""
    rng = np.random.default_rng(0)
    truth, pred = {}, {}
    for i in range(8):
        a, b = disc(48, 16, 16, 4 + i), 2 * disc(48, 34, 33, 6)
        truth[f"case_{i}"] = np.maximum(a, b) if i != 5 else a
        shift = int(rng.integers(0, 4))
        pred[f"case_{i}"] = np.roll(truth[f"case_{i}"], shift, axis=1)
    pred["case_6"] = np.zeros((48, 48), np.uint8)
    return write(tmp_path / "pred", pred), write(tmp_path / "gt", truth)


@given(seed=st.integers(0, 30))
def test_distances_agree_with_monai_within_a_pixel(seed):
    rng = np.random.default_rng(seed)
    a, b = (disc(40, *rng.uniform(14, 26, 2), rng.uniform(3, 9)) for _ in range(2))
    ours = surface_distances(a, b)
    pair = [torch.tensor(m)[None, None] for m in (a, b)]
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95).item()
    # MONAI averages the two directions, we weigh both surfaces by their size
    assd = compute_average_surface_distance(*pair, include_background=True, symmetric=True).item()
    assert ours.hd95 == pytest.approx(hd95, abs=1.0)
    assert ours.assd == pytest.approx(assd, abs=0.7)


def test_distances_by_hand():
    square = np.zeros((30, 30), np.uint8)
    square[0:10, 5:15] = 1  # touches the edge of the image
    assert surface_distances(square, square) == (0, 0, 1)
    moved = np.roll(square, 7, axis=1)
    assert surface_distances(square, moved).hd95 == pytest.approx(7)
    for spacing in ((2.0, 3.0), np.array([2.0, 3.0])):
        assert surface_distances(square, moved, spacing).hd95 == pytest.approx(21)
    empty = 0 * square
    assert np.isnan(surface_distances(square, empty)[:2]).all()
    assert surface_distances(square, empty).surface_dice == 0
    assert np.isnan(surface_distances(empty, empty)).all()
    # of the moved square's border only the parts of upper and lower edge that overlap stay near
    shares = [surface_distances(square, moved, tolerance=t).surface_dice for t in (0, 1, 6.9, 7)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5
    assert shares[-1] == 1
    volume = np.zeros((12, 12, 12))
    volume[2:6, 2:6, 2:6] = 1
    assert surface_distances(volume, np.roll(volume, 3, axis=0)).hd95 == pytest.approx(3)


@given(seed=st.integers(0, 2**32), density=st.floats(0.02, 0.4), ndim=st.sampled_from([2, 3]))
def test_lesions_are_counted_as_a_flood_fill_does(seed, density, ndim):
    rng = np.random.default_rng(seed)
    pred, truth = rng.random((2, *(9,) * ndim)) < density

    def parts(mask):
        left, found = {tuple(p) for p in np.argwhere(mask)}, []
        while left:
            part, edge = set(), [left.pop()]
            while edge:
                point = edge.pop()
                part.add(point)
                near = {
                    q for q in left if max(abs(a - b) for a, b in zip(point, q, strict=True)) == 1
                }
                left -= near
                edge += near
            found.append(part)
        return found

    true, drawn = parts(truth), parts(pred)
    hit = {tuple(p) for p in np.argwhere(pred & truth)}
    expected = len(true), sum(bool(p & hit) for p in true), sum(not p & hit for p in drawn)
    assert lesion_counts(pred, truth) == expected


def test_false_alarms_and_lesions_of_a_folder(tmp_path):
    two = np.maximum(disc(40, 10, 10, 4), disc(40, 28, 28, 4))
    none, dot = np.zeros_like(two), disc(40, 20, 4, 1)
    truth = {"a": two, "b": two, "c": none, "d": none, "e": none, "f": none}
    pred = {
        "a": two,
        "b": np.maximum(disc(40, 10, 11, 4), dot),
        "c": none,
        "d": dot,
        "e": none,
        "f": none,
    }
    found = evaluate_folders(write(tmp_path / "p", pred), write(tmp_path / "t", truth), LESION)
    lesion = {name: row["mean"] for name, row in found.summary["lesion"].items()}
    assert lesion["lesions_found"] == 3 / 4
    assert lesion["false_lesions"] == 2 / 6
    assert lesion["false_alarms"] == 1 / 4
    assert lesion["false_alarm_pixels"] == dot.sum() / 4
    assert found.summary["lesion"]["false_alarms"]["n"] == 4
    text = evaluation_markdown(found)
    assert "images without a lesion: false alarms" in text
    assert "| lesion | 75.0" in text
    # where every image has a lesion there is no such column
    (tmp_path / "t2").mkdir(), (tmp_path / "p2").mkdir()
    for name in "ab":
        for folder in "pt":
            (tmp_path / folder / f"{name}.png").rename(tmp_path / f"{folder}2" / f"{name}.png")
    found = evaluate_folders(tmp_path / "p2", tmp_path / "t2", LESION)
    assert "false alarms" not in evaluation_markdown(found)


def test_overlap_is_torchmetrics(folders):
    pred, truth = folders
    table = evaluate_folders(pred, truth, {"a": 1, "b": 2}, distances=False).per_image
    for name, group in table.groupby("image"):
        p, t = (torch.tensor(np.array(Image.open(f / str(name))))[None].long() for f in folders)
        expected = dice_score(
            p, t, 3, include_background=False, average="none", input_format="index"
        )[0]
        found = group.set_index("class").loc[["a", "b"], "dice"].to_numpy()
        seen = ~np.isnan(found)
        np.testing.assert_allclose(found[seen], expected.numpy()[seen], atol=1e-6)


def test_summary_is_that_of_segmentation_metrics(folders):
    pred, truth = folders
    evaluation = evaluate_folders(pred, truth, {"a": 1, "b": 2})
    maps = [
        np.stack([np.array(Image.open(p)) for p in sorted(f.glob("*.png"))]) for f in (pred, truth)
    ]
    image = segmentation_metrics(*maps, 3, aggregate="image")
    pooled = segmentation_metrics(*maps, 3)
    for name in ("dice", "iou", "precision", "recall", "f1"):
        assert evaluation.summary["lesion"][name]["mean"] == pytest.approx(image.lesion[name])
        assert evaluation.summary["paper"][name]["mean"] == pytest.approx(pooled.paper[name])
    assert evaluation.summary["paper"]["cb_dice"]["mean"] == pytest.approx(pooled.cb_dice)
    assert evaluation.summary["lesion"]["accuracy"]["mean"] == pytest.approx(image.accuracy)
    dice = evaluation.summary["lesion"]["dice"]
    assert dice["low"] < dice["mean"] < dice["high"]
    assert evaluation.summary["b"]["dice"]["n"] == 7  # absent from one image, and not found there


def test_the_bootstrap_interval_covers_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        values = rng.normal(size=40)
        found = bootstrap_interval(lambda i, v=values: v[i].mean(-1), 40, seed)
        hits += found["low"] <= 0 <= found["high"]
    assert 85 <= hits <= 99


def test_volumes_are_measured_in_millimetres(tmp_path):
    for folder, shift in (("gt", 0), ("pred", 2)):
        (tmp_path / folder).mkdir()
        volume = np.zeros((16, 16, 16), np.uint8)
        volume[4:8, 4:8, 4 + shift : 8 + shift] = 1
        image = SimpleITK.GetImageFromArray(volume)
        image.SetSpacing((0.5, 1.0, 2.0))  # x, y, z
        SimpleITK.WriteImage(image, str(tmp_path / folder / "case.nii.gz"))
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "gt", LESION)
    assert evaluation.unit == "mm"
    assert evaluation.per_image["hd95"][0] == pytest.approx(1.0)  # two pixels of 0.5 mm in x
    assert "hd95 (mm)" in evaluation_markdown(evaluation)


@pytest.mark.parametrize("name", ["Spacing", "Origin", "Direction"])
def test_a_prediction_elsewhere_in_space_is_refused(name, tmp_path):
    values = {"Spacing": (1, 2, 3), "Origin": (5, 0, 0), "Direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
    for folder in ("gt", "pred"):
        (tmp_path / folder).mkdir()
        volume = SimpleITK.GetImageFromArray(np.ones((4, 5, 6), np.uint8))
        if folder == "pred":
            getattr(volume, f"Set{name}")(values[name])
        SimpleITK.WriteImage(volume, str(tmp_path / folder / "case.nii.gz"))
    command = ("--labels", "lesion=1", "--no-distances", "--output", tmp_path / "report")
    result = dmf("evaluate", tmp_path / "pred", tmp_path / "gt", *command)
    assert result.returncode == 1
    both = rf"pred/case\.nii\.gz has {name.lower()} \(.*\), .*gt/case\.nii\.gz \(.*\)"
    assert re.search(both, result.stderr), result.stderr
    assert not (tmp_path / "report").exists()


def test_a_class_in_few_images_has_an_interval_or_none(tmp_path):
    truth = {f"{i}": disc(20, 10, 10, 5) for i in range(6)}
    truth["0"][:2], truth["1"][:2], truth["2"][-1] = 2, 2, 3
    pred = {name: labels.copy() for name, labels in truth.items()}
    pred["1"][0] = 0
    found = evaluate_folders(
        write(tmp_path / "p", pred), write(tmp_path / "g", truth), {"a": 1, "b": 2, "c": 3, "d": 4}
    )
    b, c, d = (found.summary[name]["dice"] for name in "bcd")
    assert (b["n"], c["n"], d["n"]) == (2, 1, 0)
    assert b["low"] == pytest.approx(2 / 3)  # the worse of its two images
    assert b["high"] == 1
    assert c["mean"] == 1
    text = evaluation_markdown(found)
    assert "nan" not in text
    assert "| c | 100.0 | 100.0 |" in text
    assert "| d |  |  |" in text


def test_ignored_pixels_do_not_count(tmp_path):
    truth = disc(20, 10, 10, 5)
    pred = truth.copy()
    pred[:, 15:] = 1
    truth[:, 15:] = 9
    write(tmp_path / "p", {"a": pred})
    write(tmp_path / "g", {"a": truth})
    found = evaluate_folders(tmp_path / "p", tmp_path / "g", LESION, ignore_index=9)
    assert found.summary["lesion"]["dice"]["mean"] == 1


def test_report_command_files_and_overwrite(folders, tmp_path):
    pred, truth = folders
    out = tmp_path / "report"
    command = ("evaluate", pred, truth, "--labels", "a=1,b=2", "--out", out)
    result = dmf(*command)
    assert result.returncode == 0, result.stderr
    assert "| lesion |" in result.stdout
    assert {p.name for p in out.iterdir()} == {
        ".dmf", "per_image.csv", "per_image.png", "summary.json", "summary.md"
    }  # fmt: skip
    content = json.loads((out / "summary.json").read_text())
    assert content["scores"]["lesion"]["dice"]["n"] == 8
    assert len(pd.read_csv(out / "per_image.csv")) == 16
    again = dmf(*command)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert dmf(*command, "--overwrite").returncode == 0
    other = dmf("evaluate", pred, truth, "--labels", "a=1,b=2", "--out", pred, "--overwrite")
    assert (other.returncode, "was not written by" in other.stderr) == (2, True)
    assert len(list(pred.glob("*.png"))) == 8


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("lesion=1", {"lesion": 1}), ("a=1, b=3", {"a": 1, "b": 3})],
)
def test_labels_from_text(labels, expected, tmp_path):
    assert parse_labels(labels, tmp_path) == expected


def test_labels_from_the_dataset_json_of_either_framework(tmp_path):
    folder = tmp_path / "labelsTs"
    folder.mkdir()
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"background": 0, "tumour": 1, "ignore": 2}}))
    assert parse_labels(None, folder) == {"tumour": 1}
    path.write_text(json.dumps({"classes": ["background", "benign", "malignant"]}))
    assert parse_labels(None, folder) == {"benign": 1, "malignant": 2}
    for content in ("{", "[]", json.dumps({"labels": {"whole": [1, 2]}})):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"dataset\.json"):
            parse_labels(None, folder)
    with pytest.raises(UsageError, match="lesion=1"):
        parse_labels(None, Path("/nowhere/labels"))
    with pytest.raises(UsageError, match="background 0"):
        parse_labels("a=0", folder)


def test_every_fault_names_its_file(folders, tmp_path):
    pred, truth = folders

    def fails(message: str, error: type[Exception] = DataError, **options: object) -> None:
        with pytest.raises(error, match=message):
            evaluate_folders(pred, truth, {"a": 1, "b": 2}, workers=1, **options)

    (pred / "case_0.png").rename(tmp_path / "case_0.png")
    fails(r"case_0\.png has no prediction.*--partial")
    assert evaluate_folders(pred, truth, {"a": 1, "b": 2}, partial=True).summary["lesion"]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(pred / "case_0.png")
    fails(r"case_0\.png has shape")
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(pred / "case_0.png")
    fails(r"case_0\.png is in colour")
    Image.fromarray(np.full((48, 48), 255, np.uint8)).save(pred / "case_0.png")
    fails(r"case_0\.png holds the label 255")
    (pred / "case_0.png").write_bytes(b"\x89PNG\r\n\x1a\n truncated")
    fails(r"case_0\.png is not a readable image")
    (pred / "case_0.png").unlink()
    (tmp_path / "case_0.png").rename(pred / "case_0.png")
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(pred / "stray.png")
    fails(r"stray\.png has no truth")
    with pytest.raises(UsageError, match="is not a folder"):
        evaluate_folders(pred / "none", truth, LESION)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no label maps"):
        evaluate_folders(tmp_path / "empty", truth, LESION)


def test_what_macos_leaves_beside_a_file_is_passed_over(folders):
    pred, truth = folders
    for folder in folders:
        (folder / "._case_0.png").write_bytes(b"\0\5\26\7")
    found = evaluate_folders(pred, truth, {"a": 1, "b": 2}, workers=1)
    assert set(found.per_image["image"]) == {f"case_{i}.png" for i in range(8)}


def test_palette_images_hold_labels_not_colours(tmp_path):
    labels = disc(20, 10, 10, 5)
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0, 250, 200, 10] + [0] * 762)
    (tmp_path / "p").mkdir()
    picture.save(tmp_path / "p" / "a.png")
    write(tmp_path / "g", {"a": labels})
    found = evaluate_folders(tmp_path / "p", tmp_path / "g", LESION)
    assert found.summary["lesion"]["dice"]["mean"] == 1


def runs(tmp_path: Path, number: int = 3, images: int = 20) -> list[Path]:
    rng = np.random.default_rng(1)
    base = rng.uniform(0.4, 0.9, images)
    paths = []
    for r in range(number):
        dice = np.clip(base + 0.03 * r + 0.02 * rng.normal(size=images), 0, 1)
        table = pd.DataFrame({
            "image": [f"{i:03d}.png" for i in range(images)], "class": "lesion", "dice": dice,
            "true_pixels": 100, "predicted_pixels": 90,
        })  # fmt: skip
        folder = tmp_path / f"run{r}"
        folder.mkdir()
        table.to_csv(folder / "per_image.csv", index=False)
        paths.append(folder)
    return paths


def test_comparison_is_scipys_wilcoxon_with_holm(tmp_path):
    paths = runs(tmp_path)
    table = compare_runs(paths)
    assert list(zip(table["a"], table["b"], strict=True)) == [
        ("run0", "run1"), ("run0", "run2"), ("run1", "run2")
    ]  # fmt: skip
    scores = [pd.read_csv(p / "per_image.csv")["dice"] for p in paths]
    expected = [wilcoxon(scores[a] - scores[b]).pvalue for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(table["p"], expected)
    order = np.argsort(expected)
    holm = np.maximum.accumulate(np.array(expected)[order] * [3, 2, 1]).clip(max=1)
    np.testing.assert_allclose(table["p_holm"].to_numpy()[order], holm)
    assert len(compare_runs(paths, reference=paths[0])) == 2
    result = dmf("compare", *paths, "--out", tmp_path / "c.csv")
    assert result.returncode == 0, result.stderr
    assert "p (Holm)" in result.stdout
    assert len(pd.read_csv(tmp_path / "c.csv")) == 3
    assert dmf("compare", *paths, "--out", tmp_path / "c.csv").returncode == 2


def test_a_false_alarm_on_an_empty_image_counts_in_a_comparison(tmp_path):
    paths = runs(tmp_path, 2)
    for path, predicted, dice in ((paths[0], 0, np.nan), (paths[1], 5, 0.0)):
        table = pd.read_csv(path / "per_image.csv")
        table.loc[0, ["dice", "true_pixels", "predicted_pixels"]] = [dice, 0, predicted]
        table.to_csv(path / "per_image.csv", index=False)
    found = compare_runs(paths).iloc[0]
    assert found["images"] == 20
    rest = [pd.read_csv(p / "per_image.csv")["dice"][1:].sum() for p in paths]
    assert found["mean_a"] == pytest.approx((rest[0] + 1) / 20)
    assert found["mean_b"] == pytest.approx(rest[1] / 20)


def test_a_comparison_of_classes_has_the_scores_of_evaluate(tmp_path):
    """One class per image, as benign and malignant: the other is neither found nor missed."""
    truth = np.zeros((4, 16, 16), np.uint8)
    for i, label in enumerate((1, 2, 1)):  # the last image has none
        truth[i, 4:12, 4:12] = label
    shifts = {"g": 0, "near": 1, "far": 3}
    for name, shift in shifts.items():
        (tmp_path / name).mkdir()
        for i, labels in enumerate(np.roll(truth, shift, axis=2)):
            Image.fromarray(labels).save(tmp_path / name / f"{i}.png")
    runs, means = [tmp_path / "r_near", tmp_path / "r_far"], []
    for run in runs:
        folder = tmp_path / run.name[2:]
        found = evaluate_folders(folder, tmp_path / "g", {"a": 1, "b": 2}, distances=False)
        write_evaluation(found, run)
        means.append(found.summary["lesion"]["dice"]["mean"])
    (row,) = compare_runs(runs).to_dict("records")
    # evaluate leaves the empty image out, where a comparison says 1
    assert [row["mean_a"], row["mean_b"]] == pytest.approx([(3 * m + 1) / 4 for m in means])


def test_an_image_without_a_score_is_left_out_of_a_comparison(tmp_path):
    """Of a lesion that was not found there is no precision; it made p and the interval NaN."""
    paths = runs(tmp_path, 2)
    for path in paths:
        table = pd.read_csv(path / "per_image.csv").assign(precision=lambda t: t["dice"])
        if path == paths[0]:
            table.loc[3, "precision"] = np.nan
        table.to_csv(path / "per_image.csv", index=False)
    (row,) = compare_runs(paths, "precision").to_dict("records")
    assert row["images"] == 19
    assert row["difference"] == pytest.approx(row["mean_a"] - row["mean_b"])
    assert 0 < row["p"] <= 1


def test_differences_that_are_equal_rank_alike():
    """0.95 - 0.9 and 0.85 - 0.8 differ by rounding alone."""
    a, b = np.array([0.95, 0.85, 0.6, 0.4, 0.3]), np.array([0.9, 0.8, 0.65, 0.3, 0.15])
    assert wilcoxon_p(a - b) == wilcoxon_p(np.array([5, 5, -5, 10, 15]))


def test_comparisons_that_cannot_be_made_are_refused(tmp_path):
    paths = runs(tmp_path, 2)
    assert compare_runs([paths[0], write_copy(paths[0], tmp_path / "same")])["p"][0] == 1
    with pytest.raises(UsageError, match="two different runs"):
        compare_runs(paths[:1])
    with pytest.raises(UsageError, match="two different runs"):
        compare_runs([paths[0], f"{paths[0]}/"])
    with pytest.raises(UsageError, match="score must be"):
        compare_runs(paths, "speed")
    with pytest.raises(DataError, match="dmf evaluate"):
        compare_runs([paths[0], tmp_path / "none"])
    table = pd.read_csv(paths[1] / "per_image.csv")
    table.iloc[1:].to_csv(paths[1] / "per_image.csv", index=False)
    with pytest.raises(DataError, match=r"different images, such as 000\.png"):
        compare_runs(paths)


def write_copy(source: Path, target: Path) -> Path:
    target.mkdir()
    (target / "per_image.csv").write_bytes((source / "per_image.csv").read_bytes())
    return target


def test_an_evaluation_can_be_written_by_hand(folders, tmp_path):
    evaluation = evaluate_folders(*folders, {"a": 1, "b": 2}, distances=False)
    write_evaluation(evaluation, tmp_path / "r")
    assert "hd95" not in (tmp_path / "r" / "summary.md").read_text()
    with pytest.raises(UsageError, match="--overwrite"):
        write_evaluation(evaluation, tmp_path / "r")
