"""Reading, filtering, splitting and writing, on files on disk."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from dmf_plugins.atomic import building
from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.cli import app
from dmf_plugins.data import bilateral_filter, convert_dataset, filter_images, split_cases
from dmf_plugins.data.duplicates import Fingerprint, group_duplicates
from dmf_plugins.data.phantom import generate_phantoms, phantom
from dmf_plugins.errors import DataError, UsageError

from .conftest import shared
from .support.commands import dmf, run


def digest(folder: Path) -> dict[str, str]:
    """Checksum of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def copy(phantoms: Path, tmp_path: Path) -> Path:
    """A private copy of the phantoms that a test may spoil."""
    return Path(shutil.copytree(phantoms, tmp_path / "src" / phantoms.name))


@pytest.fixture(autouse=True)
def _no_nnunet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


def convert(source: Path, output: Path, **options):
    return convert_dataset("busi", source, dataset_id=501, output=output, **options)


# ---------------------------------------------------------------- the filter


def test_bilateral_filter_is_eq_26_and_27():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (14, 12), dtype=np.uint8)
    diameter, sigma_r, sigma_s = 5, 40.0, 2.0
    radius = diameter // 2
    padded = np.pad(image.astype(float), radius, mode="reflect")
    expected = np.zeros(image.shape)
    for y, x in np.ndindex(*image.shape):
        total = weight = 0.0
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                if dy**2 + dx**2 > radius**2:  # OpenCV's neighbourhood is a disc
                    continue
                value = padded[y + radius + dy, x + radius + dx]
                w = np.exp(-(dy**2 + dx**2) / (2 * sigma_s**2))
                w *= np.exp(-((value - image[y, x]) ** 2) / (2 * sigma_r**2))
                total, weight = total + w * value, weight + w
        expected[y, x] = total / weight
    np.testing.assert_allclose(
        bilateral_filter(image, diameter, sigma_r, sigma_s), expected, atol=1
    )


def test_bilateral_filter_smooths_speckle_and_keeps_the_edge():
    rng = np.random.default_rng(1)
    clean = np.full((64, 64), 60.0)
    clean[:, 32:] = 200
    noisy = np.clip(clean + 12 * rng.standard_normal(clean.shape), 0, 255).astype(np.uint8)
    filtered = bilateral_filter(noisy).astype(float)
    assert filtered[:, :24].std() < 0.5 * noisy[:, :24].std()
    assert filtered[:, 36:].mean() - filtered[:, :28].mean() > 130


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32)])
def test_bilateral_filter_refuses_other_images(bad):
    with pytest.raises(ValueError, match="uint8"):
        bilateral_filter(bad)


# ---------------------------------------------------------------- the split


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("convert busi IN --to mmseg", "--seed -1"),
        ("convert busi IN --to mmseg", "--workers -3"),
        ("convert busi IN --to mmseg", "--size 99999999"),
        ("convert busi IN --to mmseg", "--threshold 255"),
        ("filter IN", "--size 99999999"),
    ],
)
def test_a_wrong_option_is_told_before_any_work(command, option, phantoms, tmp_path):
    command = [str(phantoms) if word == "IN" else word for word in command.split()]
    command += ["--output", str(tmp_path / "out"), *option.split()]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UsageError)
    assert option.split()[0].strip("-") in str(result.exception)
    assert not (tmp_path / "out").exists()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=30, max_size=80),
    classes=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_groups_stay_whole_and_parts_come_close_to_their_share(sizes, classes, seed):
    groups = [g for g, size in enumerate(sizes) for _ in range(size)]
    strata = [g % classes for g in groups]
    parts = split_cases(strata, groups, (0.7, 0.15, 0.15), seed)
    assert all(
        len({p for p, g in zip(parts, groups, strict=True) if g == k}) == 1 for k in set(groups)
    )
    for c in range(classes):
        of_class = [p for p, s in zip(parts, strata, strict=True) if s == c]
        for part, share in enumerate((0.7, 0.15, 0.15)):
            assert abs(of_class.count(part) - share * len(of_class)) <= max(sizes)


def test_split_is_seeded_and_stratified():
    strata = ["benign"] * 200 + ["malignant"] * 100
    first = split_cases(strata, range(300), seed=1)
    assert first == split_cases(strata, range(300), seed=1)
    assert first != split_cases(strata, range(300), seed=2)
    assert Counter(zip(strata, first, strict=True)) == {
        ("benign", 0): 140, ("benign", 1): 30, ("benign", 2): 30,
        ("malignant", 0): 70, ("malignant", 1): 15, ("malignant", 2): 15,
    }  # fmt: skip


@given(
    classes=st.lists(st.integers(0, 2), min_size=4, max_size=12),
    share=st.sampled_from([(0.7, 0.15, 0.15), (1, 1, 1, 1), (1, 0, 1)]),
    seed=st.integers(0, 5),
)
def test_no_part_stays_empty_while_there_are_as_many_groups(classes, share, seed):
    parts = split_cases(classes, range(len(classes)), share, seed)
    assert set(parts) == {part for part, size in enumerate(share) if size > 0}


@pytest.mark.parametrize(("benign", "malignant"), [(4, 4), (5, 5)])
def test_a_handful_of_images_converts(benign, malignant, tmp_path):
    root = generate_phantoms(tmp_path, benign=benign, malignant=malignant, normal=0, side=(40, 60))
    result = convert(root, tmp_path / "out")
    folds = json.loads((result.target / "splits_final.json").read_text())
    assert len(folds) == 5
    assert all(fold["train"] and fold["val"] for fold in folds)


def test_too_few_groups_to_split_is_an_error():
    with pytest.raises(ValueError, match="too few"):
        split_cases(["a"] * 10, [0] * 10)


def test_copies_and_near_copies_share_a_group():
    rng = np.random.default_rng(0)
    images = [phantom(rng, 200, 260, malignant=False, lesions=1)[0] for _ in range(6)]
    near = cv2.resize(images[2], (320, 250), interpolation=cv2.INTER_AREA)
    near = np.clip(near.astype(float) * 0.9 + 10, 0, 255).astype(np.uint8)
    near[-8:, :24] = 255  # an annotation burnt in
    groups = group_duplicates([Fingerprint.of(i) for i in [*images, images[0].copy(), near]])
    assert groups.tolist() == [0, 1, 2, 3, 4, 5, 0, 2]


def marked(image: np.ndarray) -> np.ndarray:
    """Caption, callipers and a dotted line, as an examiner leaves them."""
    height, width = image.shape
    image = image.copy()
    cv2.putText(image, "LT UOQ 3", (width // 4, int(height * 0.85)), 0, 0.7, 255, 2)
    for point in ((width // 3, height // 3), (2 * width // 3, height // 2)):
        cv2.drawMarker(image, point, 255, cv2.MARKER_CROSS, 14, 2)
    return image


ALTERATIONS = {
    "sides cropped": lambda i: np.ascontiguousarray(i[:, i.shape[1] // 6 : -i.shape[1] // 6]),
    "bottom cropped": lambda i: i[: i.shape[0] * 7 // 10],
    "black borders": lambda i: cv2.copyMakeBorder(i, 30, 40, 60, 25, cv2.BORDER_CONSTANT, value=0),
    "marks": marked,
    "smaller": lambda i: cv2.resize(i, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA),
    "wider": lambda i: cv2.resize(i, (i.shape[1] * 11 // 10, i.shape[0])),
    "brighter": lambda i: np.clip(i * 1.25 - 20, 0, 255).astype(np.uint8),
    "jpeg": lambda i: cv2.imdecode(cv2.imencode(".jpg", i, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0),
}


@pytest.fixture(scope="module")
def scans() -> list[np.ndarray]:
    """Six unlike images of a scanner's size."""
    return [
        phantom(np.random.default_rng(i), 440, 560, malignant=i % 2 == 0, lesions=1)[0]
        for i in range(6)
    ]


@pytest.mark.parametrize("kind", ALTERATIONS)
def test_an_altered_copy_shares_a_group_and_strangers_do_not(kind, scans):
    altered = [ALTERATIONS[kind](image) for image in scans]
    groups = group_duplicates([Fingerprint.of(image) for image in [*scans, *altered]])
    assert groups.tolist() == [*range(6), *range(6)]


def test_a_crop_to_an_odd_size_keeps_the_words(scans):
    words, of_crop = (Fingerprint.of(image).words for image in (scans[1], scans[1][:-1, :-1]))
    assert len(np.intersect1d(words, of_crop)) > len(words) / 3  # 7 % if halved inexactly


def test_patients_and_near_copies_are_linked_together():
    rng = np.random.default_rng(0)
    images = [phantom(rng, 100, 130, malignant=False, lesions=1)[0] for _ in range(5)]
    prints = [Fingerprint.of(image) for image in [*images, images[4]]]
    groups = group_duplicates(prints, ["a", None, "a", None, "b", "a"])
    assert groups.tolist() == [0, 1, 0, 2, 0, 0]  # "b" holds a copy of an image of "a"


# ---------------------------------------------------------------- the conversion


def test_layout_labels_and_dataset_json(phantoms, tmp_path):
    result = convert(phantoms, tmp_path)
    folder = tmp_path / "Dataset501_BUSI"
    assert result.target == folder
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "lesion": 1}
    assert "10.1016/j.dib.2019.104863" in dataset["reference"]
    rows = manifest(folder)
    assert len(rows) == 22  # normals stay out
    assert dataset["numTraining"] == sum(row["split"] != "test" for row in rows)
    for row in rows:
        images, labels = (
            ("imagesTs", "labelsTs") if row["split"] == "test" else ("imagesTr", "labelsTr")
        )
        image = Image.open(folder / images / f"{row['case']}_0000.png")
        label = Image.open(folder / labels / f"{row['case']}.png")
        source = phantoms.parent / phantoms.name / row["image"]
        assert image.mode == label.mode == "L"
        assert (
            image.size
            == label.size
            == Image.open(source).size
            == (int(row["width"]), int(row["height"]))
        )
        assert set(np.unique(label)) == {0, 1}
        assert row["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        np.testing.assert_array_equal(image, bilateral_filter(np.asarray(Image.open(source))))
        union = sum(np.asarray(Image.open(phantoms / m)) > 127 for m in row["masks"].split(";")) > 0
        np.testing.assert_array_equal(np.asarray(label) == 1, union)
    assert any(len(row["masks"].split(";")) == 2 for row in rows)
    assert Image.open(folder / "preview.png").size[0] > 500


def test_benign_and_malignant_labels_normals_size_and_no_filter(phantoms, tmp_path):
    convert(
        phantoms,
        tmp_path,
        labels="benign-malignant",
        include_normal=True,
        size=(48, 32),
        bilateral=None,
    )
    folder = tmp_path / "Dataset501_BUSI"
    value = {"benign": 1, "malignant": 2, "normal": 0}
    for row in manifest(folder):
        where = "Ts" if row["split"] == "test" else "Tr"
        label = np.asarray(Image.open(folder / f"labels{where}" / f"{row['case']}.png"))
        image = np.asarray(Image.open(folder / f"images{where}" / f"{row['case']}_0000.png"))
        assert label.shape == image.shape == (32, 48)
        assert label.max() == value[row["class"]]
        original = np.asarray(Image.open(phantoms / row["image"]))
        np.testing.assert_array_equal(
            image, cv2.resize(original, (48, 32), interpolation=cv2.INTER_AREA)
        )
    assert json.loads((folder / "dataset.json").read_text())["labels"]["malignant"] == 2


def test_splits_are_a_cross_validation_over_the_training_cases(phantoms, tmp_path):
    convert(phantoms, tmp_path)
    folder = tmp_path / "Dataset501_BUSI"
    folds = json.loads((folder / "splits_final.json").read_text())
    by_split = {
        s: sorted(r["case"] for r in manifest(folder) if r["split"] == s) for s in ("train", "val")
    }
    assert folds[0] == by_split
    everyone = sorted(by_split["train"] + by_split["val"])
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == everyone
    assert all(sorted(fold["train"] + fold["val"]) == everyone for fold in folds)


def test_folder_and_zip_and_threads_give_the_same_bytes(phantoms, tmp_path):
    archive = Path(
        shutil.make_archive(str(tmp_path / "busi"), "zip", phantoms.parent, phantoms.name)
    )
    convert(phantoms.parent, tmp_path / "a", workers=1)
    convert(archive, tmp_path / "b", workers=4)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    convert(phantoms.parent, tmp_path / "c", seed=1)
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_duplicates_end_in_one_split(copy, tmp_path):
    for number in range(101, 105):  # four copies of one benign image, one of them "malignant"
        category = "malignant" if number == 104 else "benign"
        for suffix in ("", "_mask"):
            shutil.copy(
                copy / f"benign/benign (1){suffix}.png",
                copy / category / f"{category} ({number}){suffix}.png",
            )
    result = convert(copy, tmp_path)
    rows = {row["case"]: row for row in manifest(result.target)}
    copies = ["benign_001", "benign_101", "benign_102", "benign_103", "malignant_104"]
    assert len({rows[c]["group"] for c in copies}) == len({rows[c]["split"] for c in copies}) == 1
    assert any("different classes" in r and "malignant_104" in r for r in result.remarks)


def test_folds_test_every_case_once_and_keep_groups_together(phantoms, tmp_path):
    tested: list[str] = []
    for k in range(3):
        result = convert(phantoms, tmp_path / str(k), fold=(k, 3))
        rows = manifest(result.target)
        parts = Counter(row["split"] for row in rows)
        assert all(6 <= parts[name] <= 9 for name in ("train", "val", "test")), parts
        tested += [row["case"] for row in rows if row["split"] == "test"]
        for group in {row["group"] for row in rows}:
            assert len({row["split"] for row in rows if row["group"] == group}) == 1
    assert sorted(tested) == sorted(row["case"] for row in rows)
    for wrong in ((3, 3), (0, 2), (-1, 5)):
        with pytest.raises(UsageError, match="at least 3 folds"):
            convert(phantoms, tmp_path / "x", fold=wrong)


def test_split_goes_where_nnunet_reads_it(phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    result = convert_dataset("busi", phantoms, dataset_id=7)
    assert result.target == tmp_path / "raw" / "Dataset007_BUSI"
    live = tmp_path / "pre" / "Dataset007_BUSI" / "splits_final.json"
    assert live.read_text() == (result.target / "splits_final.json").read_text()
    shutil.rmtree(result.target)
    with pytest.raises(UsageError, match=r"splits_final.json exists.*--overwrite"):
        convert_dataset("busi", phantoms, dataset_id=7)


@pytest.mark.parametrize("invalid", ["pre", "pre/Dataset501_BUSI", "pre/Dataset501_BUSI/splits"])
def test_where_the_split_cannot_go_is_told_before_the_work(
    invalid, phantoms, tmp_path, monkeypatch
):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    path = tmp_path / invalid
    if path.name == "splits":
        path = path.with_name("splits_final.json")
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    with pytest.raises(UsageError, match=rf"{path} is not a"):
        convert(phantoms, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out").exists()


def test_without_the_variable_the_copy_command_is_told(phantoms, tmp_path):
    steps = "\n".join(convert(phantoms, tmp_path).next_steps)
    assert f"cp {tmp_path}/Dataset501_BUSI/splits_final.json" in steps
    assert "nnUNetv2_plan_and_preprocess -d 501" in steps


def test_the_copy_command_works_where_paths_hold_a_space(phantoms, tmp_path):
    result = convert(phantoms, tmp_path / "raw data")
    (command,) = [line for step in result.next_steps for line in step.splitlines() if "cp " in line]
    run("bash", "-ec", command, cwd=tmp_path, nnUNet_preprocessed=str(tmp_path / "my data"))
    copied = tmp_path / "my data" / "Dataset501_BUSI" / "splits_final.json"
    assert copied.read_bytes() == (result.target / "splits_final.json").read_bytes()


# ---------------------------------------------------------------- bad input


def spoil_missing_mask(root: Path) -> str:
    (root / "benign/benign (2)_mask.png").unlink()
    return r"missing mask.*benign \(2\)\.png.*benign \(2\)_mask\.png"


def spoil_orphan_mask(root: Path) -> str:
    (root / "malignant/malignant (1).png").unlink()
    return r"mask without an image.*malignant \(1\)_mask\.png"


def spoil_size(root: Path) -> str:
    Image.new("L", (10, 10)).save(root / "benign/benign (3)_mask.png")
    return r"benign \(3\)_mask\.png is 10x10 pixels, its image .*--skip-invalid"


def spoil_truncated(root: Path) -> str:
    path = root / "benign/benign (4).png"
    path.write_bytes(path.read_bytes()[:300])
    return r"benign \(4\)\.png is not a readable image"


def spoil_empty(root: Path) -> str:
    (root / "benign/benign (5).png").write_bytes(b"")
    return r"benign \(5\)\.png is not a readable image"


def spoil_16_bit(root: Path) -> str:
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(root / "benign/benign (6).png")
    return r"benign \(6\)\.png has more than 8 bits"


def spoil_twice(root: Path) -> str:
    (root / "again").mkdir()
    shutil.copy(root / "benign/benign (1).png", root / "again/benign (1).png")
    return r"stands twice.*again/benign \(1\)\.png.*benign/benign \(1\)\.png"


SPOILERS = [
    spoil_missing_mask,
    spoil_orphan_mask,
    spoil_size,
    spoil_truncated,
    spoil_empty,
    spoil_16_bit,
    spoil_twice,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__)
def test_an_invalid_case_is_named_and_nothing_is_written(spoil, copy, tmp_path):
    message = spoil(copy)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=message):
        convert(copy, out)
    assert not out.exists()
    result = convert(copy, out, skip_invalid=True)
    assert len(result.cases) == 21
    assert any(remark.startswith("left out:") for remark in result.remarks)


def test_all_invalid_cases_are_told_at_once(copy, tmp_path):
    spoil_missing_mask(copy)
    spoil_size(copy)
    with pytest.raises(DataError, match=r"2 case\(s\).*") as error:
        convert(copy, tmp_path / "out")
    assert "benign (2)" in str(error.value)
    assert "benign (3)" in str(error.value)


def test_mask_modes_seen_in_the_wild(copy, tmp_path):
    path = copy / "benign/benign (1)_mask.png"
    mask = Image.open(path)
    expected = np.asarray(mask) > 127
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        mask.convert(mode).save(path)
        result = convert(copy, tmp_path / mode)
        found = next(result.target.glob("labelsT?/benign_001.png"))
        np.testing.assert_array_equal(np.asarray(Image.open(found)) == 1, expected)


@pytest.mark.parametrize("every", [True, False])
def test_masks_stored_as_0_and_1_are_told_and_can_be_read(every, copy, tmp_path):
    for path in copy.rglob("*_mask*.png") if every else [copy / "benign/benign (1)_mask.png"]:
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=r"benign \(1\)_mask\.png .*threshold 127.*--threshold 0"):
        convert(copy, tmp_path / "out")
    assert not (tmp_path / "out/Dataset501_BUSI").exists()
    rows = manifest(convert(copy, tmp_path / "out", threshold=0).target)
    assert all(float(row["lesion_fraction"]) > 0 for row in rows)


def test_notes_are_capped(copy, tmp_path):
    for number in range(40):
        shutil.copy(copy / "benign/benign (1).png", copy / f"screenshot {number}.png")
    command = ["convert", "busi", str(copy), "--to", "mmseg", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    notes = [line for line in result.stdout.splitlines() if line.startswith("note:")]
    assert len(notes) == 21
    assert notes[-1] == "note: and 20 more"


def test_threads_import_nothing(phantoms, tmp_path):
    """An interrupt while the main thread imports can leave the import lock taken: a thread that
    imported then hung for ever, in one of a few hundred interrupted conversions."""
    code = """
import sys, threading
from dmf_plugins.data import convert_dataset
found = []
def hook(event, arguments):
    if event == "import" and threading.current_thread() is not threading.main_thread():
        found.append(arguments[0])
sys.addaudithook(hook)
convert_dataset("busi", sys.argv[1], "mmseg", output=sys.argv[2])
assert not found, found
"""
    run(sys.executable, "-c", code, phantoms, tmp_path)


def test_the_next_command_names_the_config_that_fits(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    three = convert_dataset("busi", phantoms, "mmseg", labels="benign-malignant")
    (step,) = three.next_steps
    assert step.endswith('"$(dmf paths --mmseg)/unet_dmf_busi-3class-128x128.py"')
    script = shlex.split(step)[1]
    if find_spec("mmseg"):
        assert Path(script).name == "train.py"
        assert Path(script).exists()
    else:
        assert script == "tools/train.py"
    (step,) = convert_dataset("busi", phantoms, "mmseg", output="elsewhere").next_steps
    assert "/unet_dmf_busi-128x128.py" in step
    assert "train_dataloader.dataset.data_root=elsewhere/BUSI" in step
    shutil.rmtree("data")
    link, step = convert_dataset("busi", phantoms, "mmseg", output="else where").next_steps
    run("bash", "-ec", link)  # mmengine takes a path without blanks alone
    assert step.endswith('/unet_dmf_busi-128x128.py"'), "whose data_root is data/BUSI"
    assert Path("data/BUSI/img_dir/train").is_dir()


def test_the_next_commands_name_the_folder_nnunet_has_to_look_in(phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    steps = convert(phantoms, tmp_path / "else where").next_steps
    assert steps[0] == f"export nnUNet_raw='{tmp_path}/else where'"
    shutil.rmtree(tmp_path / "else where")
    assert not any("nnUNet_raw=" in step for step in convert(phantoms, tmp_path / "raw").next_steps)
    shutil.rmtree(tmp_path / "raw")
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.chdir(tmp_path)
    assert convert(phantoms, Path()).next_steps[0] == f"export nnUNet_raw={tmp_path}"


def test_a_conversion_that_is_refused_leaves_no_folder(phantoms, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(DataError, match="no BUSI images"):
        convert(tmp_path / "source", tmp_path / "a" / "b")
    with pytest.raises(DataError), building(tmp_path / "a" / "b" / "c", "convert"):
        raise DataError("it fails half way")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_empty_lesion_mask_is_remarked(copy, tmp_path):
    path = copy / "benign/benign (1)_mask.png"
    Image.new("L", Image.open(path).size).save(path)
    assert any("no lesion" in r and "benign (1)" in r for r in convert(copy, tmp_path).remarks)


def test_a_lesion_lost_by_resizing_is_remarked(copy, tmp_path):
    path = copy / "benign/benign (1)_mask.png"
    mask = np.zeros(Image.open(path).size[::-1], np.uint8)
    mask[3, 3] = 255
    Image.fromarray(mask).save(path)
    result = convert(copy, tmp_path, size=(16, 16))
    (remark,) = (r for r in result.remarks if "--size" in r)
    assert "benign (1).png" in remark


def test_wrong_arguments_are_named(phantoms, tmp_path, monkeypatch):
    def fails(message, **options):
        with pytest.raises(UsageError, match=message):
            convert_dataset(
                **{"dataset": "busi", "source": phantoms, "dataset_id": 501, "output": tmp_path}
                | options
            )

    fails("unknown data set 'busy'", dataset="busy")
    fails("unknown format", to="tensorflow")
    fails("unknown labels", labels="cyst")
    fails(r"--dataset-id must lie in 1\.\.999", dataset_id=0)
    fails("--dataset-id", dataset_id=None)
    fails("threshold", threshold=255)
    fails("size", size=(4, 4))
    fails("size must lie between 8x8 and 8192x8192, got 99999999x8", size=(99999999, 8))
    fails("seed must not be negative, got -1", seed=-1)
    fails("workers must be at least 1, got -3", workers=-3)
    fails("does not exist", source=tmp_path / "nothing")
    fails("export nnUNet_raw=", output=None)
    (tmp_path / "Dataset501_Other").mkdir()
    fails("dataset id 501 is taken by .*Dataset501_Other")
    with pytest.raises(DataError, match="no BUSI images"):
        convert_dataset("busi", tmp_path, dataset_id=5, output=tmp_path / "x")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match=r"broken\.zip is not a readable zip"):
        convert_dataset("busi", broken, dataset_id=5, output=tmp_path / "x")


def test_overwrite_is_needed_and_replaces_what_was_written(phantoms, tmp_path):
    result = convert(phantoms, tmp_path)
    written = digest(result.target)
    next(result.target.glob("imagesTr/*")).unlink()
    with pytest.raises(UsageError, match="--overwrite"):
        convert(phantoms, tmp_path)
    convert(phantoms, tmp_path, overwrite=True)
    assert digest(result.target) == written
    (result.target / "imagesTs" / "mine.png").write_text("precious")
    with pytest.raises(UsageError, match=r"imagesTs/mine\.png was not written by"):
        convert(phantoms, tmp_path, overwrite=True)
    assert (result.target / "imagesTs" / "mine.png").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset501_BUSI"]


def test_the_source_is_never_overwritten(phantoms, tmp_path):
    source = shutil.copytree(phantoms, tmp_path / "BUSI")
    before = digest(source)
    for path in (source, source / "benign"):
        with pytest.raises(UsageError, match="lies in"):
            convert_dataset("busi", path, "mmseg", output=tmp_path, overwrite=True)
    assert digest(source) == before


def test_a_failed_overwrite_leaves_the_old_data(copy, tmp_path):
    out = tmp_path / "out"
    convert(copy, out)
    before = digest(out)
    spoil_truncated(copy)
    with pytest.raises(DataError):
        convert(copy, out, overwrite=True)
    assert digest(out) == before


def test_leftovers_of_a_killed_conversion_are_cleared(phantoms, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = f".dmf-partial-{{}}-{socket.gethostname()}-abc"
    (tmp_path / name.format(dead.pid) / "image").mkdir(parents=True)
    alive = name.format(os.getpid())  # another conversion is at work
    (tmp_path / alive).mkdir()
    convert(phantoms, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"Dataset501_BUSI", alive}


def test_litter_in_the_zip_is_passed_over(phantoms, tmp_path):
    archive = tmp_path / "busi.zip"
    with zipfile.ZipFile(archive, "w") as z:
        for path in phantoms.rglob("*.png"):
            z.write(path, path.relative_to(phantoms.parent))
        z.writestr("__MACOSX/Dataset_BUSI_with_GT/benign/._benign (1).png", b"junk")
        z.writestr("Dataset_BUSI_with_GT/benign/Thumbs.db", b"junk")
    assert len(convert(archive, tmp_path / "out").cases) == 22


# ---------------------------------------------------------------- dmf filter


def test_filtering_for_inference_is_what_the_converter_did(phantoms, tmp_path):
    result = convert(phantoms, tmp_path)
    written = filter_images(phantoms / "benign", tmp_path / "new", nnunet=True)
    assert len(written) == 14
    for row in manifest(result.target)[:5]:
        where = "imagesTs" if row["split"] == "test" else "imagesTr"
        converted = result.target / where / f"{row['case']}_0000.png"
        filtered = tmp_path / "new" / f"{Path(row['image']).stem}_0000.png"
        assert converted.read_bytes() == filtered.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": (40, 48)},
        {"bilateral": BilateralParameters(5, 30.5), "size": (32, 32)},
        {"bilateral": None},
    ],
)
@pytest.mark.parametrize("to", ["nnunet", "mmseg"])
def test_the_data_set_records_how_to_filter_new_images(to, options, phantoms, tmp_path):
    number = 501 if to == "nnunet" else None
    result = convert_dataset("busi", phantoms, to, dataset_id=number, output=tmp_path, **options)
    command = json.loads((result.target / "dataset.json").read_text())["new_images"]
    assert command == result.new_images
    places = {"IN": phantoms / "benign", "OUT": tmp_path / "new"}
    done = dmf(*(places.get(word, word) for word in command.split()[1:]))
    assert done.returncode == 0, done.stderr
    ending = "_0000.png" if to == "nnunet" else ".png"
    for row in manifest(result.target)[:5]:
        (converted,) = result.target.glob(f"im*/**/{row['case']}{ending}")
        filtered = tmp_path / "new" / f"{Path(row['image']).stem}{ending}"
        assert converted.read_bytes() == filtered.read_bytes()


def test_masks_beside_their_images_are_left_out_and_told(copy, tmp_path):
    folder = copy / "benign"
    (folder / "benign (1).png").rename(tmp_path / "benign (1).png")  # its mask may be an image
    result = dmf("filter", folder, "--output", tmp_path / "out")
    assert "left out 15 mask(s)" in result.stdout
    names = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert names == {f"benign ({i}).png" for i in range(2, 15)} | {"benign (1)_mask.png"}
    assert "left out" not in dmf("filter", tmp_path, "--output", tmp_path / "one").stdout


def test_filter_one_file_and_its_errors(phantoms, tmp_path):
    source = phantoms / "benign/benign (1).png"
    assert filter_images(source, tmp_path / "one.png") == [tmp_path / "one.png"]
    with pytest.raises(UsageError, match="--overwrite"):
        filter_images(source, tmp_path / "one.png")
    filter_images(source, tmp_path / "one.png", overwrite=True)
    with pytest.raises(UsageError, match="does not exist"):
        filter_images(tmp_path / "none", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="no images"):
        filter_images(tmp_path / "in", tmp_path / "out")
    shutil.copy(source, tmp_path / "in/a.png")
    (tmp_path / "in/._a.png").write_bytes(b"junk")  # macOS leaves it
    assert filter_images(tmp_path / "in", tmp_path / "copy") == [tmp_path / "copy/a.png"]
    (tmp_path / "in/b.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"b\.png is not a readable image"):
        filter_images(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


# ---------------------------------------------------------------- real data


@pytest.mark.slow
def test_the_real_data_converts_and_its_known_duplicates_are_found(tmp_path):
    source = shared("data/Dataset_BUSI_with_GT")
    result = convert(source, tmp_path, include_normal=True, bilateral=None, size=(64, 64))
    rows = {row["case"]: row for row in manifest(result.target)}
    assert Counter(row["class"] for row in rows.values()) == {
        "benign": 256,
        "malignant": 122,
        "normal": 40,
    }
    for pair in [("benign_433", "malignant_145"), ("benign_131", "malignant_051"),
                 ("benign_042", "malignant_051"), ("benign_164", "malignant_052"),
                 ("benign_269", "normal_001")]:  # fmt: skip
        assert rows[pair[0]]["group"] == rows[pair[1]]["group"], pair
        assert rows[pair[0]]["split"] == rows[pair[1]]["split"], pair
    # the same scan with other callipers or another crop; other frames of one lesion
    for pair in [("benign_016", "benign_151"), ("benign_094", "benign_108"),
                 ("benign_221", "benign_246"), ("malignant_039", "malignant_042"),
                 ("malignant_011", "malignant_113"), ("malignant_065", "malignant_066"),
                 ("malignant_080", "malignant_081"), ("malignant_095", "malignant_096"),
                 ("malignant_098", "malignant_099"), ("malignant_106", "malignant_107"),
                 ("benign_204", "benign_206"), ("benign_125", "benign_126")]:  # fmt: skip
        assert rows[pair[0]]["group"] == rows[pair[1]]["group"], pair
    assert max(Counter(row["group"] for row in rows.values()).values()) <= 8  # nothing chains
    assert len(rows["benign_025"]["masks"].split(";")) == 2
    shares = Counter(row["split"] for row in rows.values())
    assert shares["train"] / 418 == pytest.approx(0.70, abs=0.01)
    assert shares["test"] / 418 == pytest.approx(0.15, abs=0.01)
