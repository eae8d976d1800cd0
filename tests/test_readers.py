"""BUSC and BUS in the layouts seen, for both frameworks. (BUSI: test_data.py.)"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmf_plugins.data import READERS, Case, DatasetInfo, Reading, convert_dataset
from dmf_plugins.data.phantom import phantom
from dmf_plugins.errors import DataError, UsageError


@functools.cache
def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
    image, masks = phantom(np.random.default_rng(number), 128, 128, number % 3 == 0, 1)
    return image, masks[0]


def build(
    folder: Path, name: Callable[[int], str], mask: Callable[[int], str], count: int = 24
) -> Path:
    """128x128 phantoms; masks are grey probability maps, lesion where they exceed one half."""
    for i in range(count):
        image, lesion = picture(i)
        grey = np.where(lesion > 0, 128 + i, 40).astype(np.uint8)
        for path, content in ((folder / name(i), image), (folder / mask(i), grey)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    return folder


LAYOUTS = {
    "bus_same_stem": (
        "bus",
        "BUS_synthetic_dataset/images/{}.png",
        "BUS_synthetic_dataset/masks/{}.png",
    ),
    "bus_masks_0": ("bus", "images/img_{}.png", "masks/0/img_{}.png"),
    "busc_suffix": ("busc", "Segmentation/images/us{}.png", "Segmentation/masks/us{}_mask.png"),
    "busc_prefix": ("busc", "Segmentation/Images/us{}.bmp", "Segmentation/Masks/mask_us{}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("to", ["nnunet", "mmseg"])
def test_every_layout_converts_for_both_frameworks(layout, to, tmp_path):
    dataset, image, mask = LAYOUTS[layout]
    source = build(tmp_path / "src", image.format, mask.format)
    archive = shutil.make_archive(str(tmp_path / "zip"), "zip", source)
    options = {"dataset_id": 502} if to == "nnunet" else {}
    result = convert_dataset(
        dataset, archive, to, output=tmp_path / "out", bilateral=None, **options
    )
    assert len(result.cases) == 24
    folders = {
        "nnunet": lambda s: ("imagesTs", "labelsTs") if s == "test" else ("imagesTr", "labelsTr"),
        "mmseg": lambda s: (f"img_dir/{s}", f"ann_dir/{s}"),
    }[to]
    for case in result.cases:
        images, labels = folders(case.split)
        suffix = "_0000" if to == "nnunet" else ""
        i = int("".join(c for c in case.case_id.split("_")[-1] if c.isdigit()))
        original, masks = phantom(np.random.default_rng(i), 128, 128, i % 3 == 0, 1)
        found = np.asarray(Image.open(result.target / images / f"{case.case_id}{suffix}.png"))
        label = np.asarray(Image.open(result.target / labels / f"{case.case_id}.png"))
        np.testing.assert_array_equal(found, original)
        np.testing.assert_array_equal(label, masks[0] > 0)
    if to == "mmseg":
        meta = json.loads((result.target / "dataset.json").read_text())
        assert (meta["classes"], meta["reduce_zero_label"]) == (["background", "lesion"], False)


def test_class_folders_give_the_class(tmp_path):
    def place(kind):
        return lambda i: f"{kind}/{'malignant' if i % 3 == 0 else 'benign'}/{i // 3}.png"

    source = build(tmp_path / "src", place("images"), place("masks"))
    with pytest.raises(UsageError, match="--dataset-id"):
        convert_dataset("busc", source, "nnunet", output=tmp_path)
    result = convert_dataset(
        "busc", source, "mmseg", output=tmp_path / "o", labels="benign-malignant"
    )
    assert {case.category for case in result.cases} == {"benign", "malignant"}
    assert {case.case_id for case in result.cases} >= {"malignant_0", "benign_0"}


@pytest.mark.parametrize("parent", ["label", "mask/BUSC", "gt/images/set"])
def test_the_nearest_folder_tells_images_from_masks(parent, tmp_path):
    source = build(
        tmp_path / "src", f"{parent}/images/{{}}.png".format, f"{parent}/masks/{{}}.png".format
    )
    result = convert_dataset("bus", source, "mmseg", output=tmp_path / "out", bilateral=None)
    for case in result.cases:
        _, masks = phantom(np.random.default_rng(int(case.case_id.split("_")[1])), 128, 128,
                           int(case.case_id.split("_")[1]) % 3 == 0, 1)  # fmt: skip
        label = Image.open(result.target / f"ann_dir/{case.split}/{case.case_id}.png")
        np.testing.assert_array_equal(np.asarray(label), masks[0] > 0)


def test_a_folder_that_names_both_classes_tells_neither(tmp_path):
    source = build(
        tmp_path / "src", "benign and malignant/images/{}.png".format,
        "benign and malignant/masks/{}.png".format,
    )  # fmt: skip
    result = convert_dataset("bus", source, "mmseg", output=tmp_path / "out")
    assert {case.category for case in result.cases} == {"lesion"}


# what a reader of somebody else's may get wrong, and what is said of it
FAULTS = {
    "id twice": ({"case_id": "CASE_0"}, "ids must be unique"),
    "id that leaves": ({"case_id": "../../evil"}, "an id is letters"),
    "id of dots": ({"case_id": ".."}, "an id is letters"),
    "hidden id": ({"case_id": ".hidden"}, "an id is letters"),
    "empty id": ({"case_id": ""}, "an id is letters"),
    "id with a colon": ({"case_id": "a:b"}, "an id is letters"),
    "endless id": ({"case_id": "a" * 250}, "at most 200 bytes; this one has 250"),
    "capitalised class": ({"category": "Benign"}, "class 'Benign' is not one of benign"),
    "no image": ({"image": "images/none.png"}, "there is no file 'images/none.png'"),
    "image outside": ({"image": "../src/images/1.png"}, "there is no file '../src"),
    "no mask file": ({"masks": ("masks/none.png",)}, "there is no file 'masks/none.png'"),
    "no mask": ({"masks": ()}, "it has no mask"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_leaves_a_reader_is_checked(fault, tmp_path):
    changes, message = FAULTS[fault]

    def read(source):
        cases = [
            Case(f"case_{i}", "benign", f"images/{i}.png", (f"masks/{i}.png",)) for i in range(24)
        ]
        cases[20] = replace(cases[20], **changes)
        return Reading(cases)

    source = build(tmp_path / "src", "images/{}.png".format, "masks/{}.png".format)
    READERS.register("faulty")(DatasetInfo("FAULTY", read, "", ""))
    before = set(tmp_path.rglob("*"))
    try:
        with pytest.raises(DataError) as error:
            convert_dataset("faulty", source, "mmseg", output=tmp_path / "out")
        result = convert_dataset(
            "faulty", source, "mmseg", output=tmp_path / "out", skip_invalid=True
        )
    finally:
        READERS.unregister("faulty")
    assert message in str(error.value)
    assert f"reader of FAULTY, case {changes.get('case_id', 'case_20')!r}" in str(error.value)
    assert len(result.cases) == 23
    assert all(p.is_relative_to(tmp_path / "out") for p in set(tmp_path.rglob("*")) - before)


@pytest.mark.parametrize("title", ["a/b", "..", ".hidden", "", "a\\b"])
def test_a_title_has_to_do_for_a_folder(title):
    with pytest.raises(UsageError, match="title"):
        DatasetInfo(title, lambda source: Reading(), "", "")


def test_sorted_order_is_the_last_resort_and_is_told(tmp_path):
    source = build(tmp_path / "src", "images/case{}.png".format, "masks/{}b.png".format)
    result = convert_dataset("bus", source, "mmseg", output=tmp_path / "out", bilateral=None)
    assert any("in sorted order" in remark for remark in result.remarks)
    case = next(c for c in result.cases if c.case_id == "lesion_case10")
    label = np.asarray(Image.open(result.target / f"ann_dir/{case.split}/{case.case_id}.png"))
    _, masks = phantom(np.random.default_rng(10), 128, 128, False, 1)
    np.testing.assert_array_equal(label, masks[0] > 0)  # natural order: 10 is not after 1
    (source / "masks/5b.png").unlink()
    with pytest.raises(DataError, match="24 images cannot be paired with 23 masks"):
        convert_dataset("bus", source, "mmseg", output=tmp_path / "out2")


def test_the_unannotated_release_is_recognised(tmp_path):
    for category in ("benign", "malignant"):
        folder = tmp_path / "src" / "originals" / category
        folder.mkdir(parents=True)
        Image.new("L", (128, 128)).save(folder / "us1.bmp")
    with pytest.raises(DataError, match=r"release without masks.*vckdnhtw26"):
        convert_dataset("busc", tmp_path / "src", "mmseg", output=tmp_path / "out")


def test_problems_are_named(tmp_path):
    source = build(tmp_path / "src", "images/{}.png".format, "masks/{}_mask.png".format)
    (source / "masks/3_mask.png").unlink()
    Image.new("L", (128, 128)).save(source / "masks/77_mask.png")
    shutil.copy(source / "images/4.png", source / "images/4.bmp")
    with pytest.raises(DataError) as error:
        convert_dataset("bus", source, "mmseg", output=tmp_path / "out")
    for part in ("missing mask", "3.png", "without an image", "77_mask.png", "share the name"):
        assert part in str(error.value)
    assert (
        len(
            convert_dataset(
                "bus", source, "mmseg", output=tmp_path / "out", skip_invalid=True
            ).cases
        )
        == 23
    )
    with pytest.raises(UsageError, match="does not tell benign from malignant"):
        convert_dataset(
            "bus",
            source,
            "mmseg",
            output=tmp_path / "o",
            labels="benign-malignant",
            skip_invalid=True,
        )
    with pytest.raises(UsageError, match="belongs to --to nnunet"):
        convert_dataset("bus", source, "mmseg", output=tmp_path / "o", dataset_id=5)
    with pytest.raises(DataError, match="no folder 'images'"):
        convert_dataset("bus", tmp_path / "out" / "BUS" / "ann_dir", "mmseg", output=tmp_path / "o")


def test_a_last_0000_is_not_taken_for_a_channel(tmp_path):
    source = build(tmp_path / "src", "images/a_{:04d}.png".format, "masks/a_{:04d}.png".format)
    result = convert_dataset("bus", source, dataset_id=3, output=tmp_path / "out")
    assert not any(case.case_id.endswith("_0000") for case in result.cases)
