"""Every kind of bad input ends in success or in an error that names the file; nothing is left behind."""

from __future__ import annotations

import io
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from dmf_plugins.data import convert_dataset
from dmf_plugins.errors import DataError, DMFError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (28, 36), dtype=np.uint8)
MASK = np.zeros((28, 36), np.uint8)
MASK[8:20, 10:24] = 255
IMAGE, MASK_NAME = "benign (1).png", "benign (1)_mask.png"
Spoil = Callable[[Path], None]


def png(image: Image.Image | np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, options.pop("format", "PNG"), **options)
    return stream.getvalue()


@pytest.fixture
def busi(tmp_path: Path) -> Path:
    """Sixteen sound cases in BUSI's layout."""
    root = tmp_path / "Dataset_BUSI_with_GT"
    for category in ("benign", "malignant"):
        (root / category).mkdir(parents=True)
        for number in range(1, 9):
            pixels = RNG.integers(0, 256, (28, 36), dtype=np.uint8)
            (root / category / f"{category} ({number}).png").write_bytes(png(pixels))
            (root / category / f"{category} ({number})_mask.png").write_bytes(png(MASK))
    return root


def in_benign(name: str, content: bytes | None) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / "benign" / name
        path.unlink() if content is None else path.write_bytes(content)

    return spoil


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")  # fmt: skip


def wrong_checksum() -> bytes:
    content = bytearray(png(PIXELS))
    content[content.index(b"IDAT") + 20] ^= 0xFF
    return bytes(content)


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "0" * (8 << 20), zip=True)
    return png(PIXELS, pnginfo=info)


def tiff_with_an_empty_page() -> bytes:
    """A TIFF whose second page has no entries, not even a width."""
    content = bytearray(png(PIXELS, format="TIFF"))
    (directory,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, directory)
    struct.pack_into("<I", content, directory + 2 + 12 * entries, len(content))
    return bytes(content) + bytes(6)


def palette_image() -> Image.Image:
    picture = Image.fromarray(PIXELS)
    picture.putpalette([v for i in range(256) for v in (i, i, i)])
    return picture


def folder_for_a_file(root: Path) -> None:
    (root / "benign" / IMAGE).unlink()
    (root / "benign" / IMAGE).mkdir()


def dangling_link(root: Path) -> None:
    (root / "benign" / IMAGE).unlink()
    (root / "benign" / IMAGE).symlink_to(root / "nowhere.png")


def pipe(root: Path) -> None:
    (root / "benign" / IMAGE).unlink()
    os.mkfifo(root / "benign" / IMAGE)


def link_to_a_device(root: Path) -> None:
    (root / "benign" / IMAGE).unlink()
    (root / "benign" / IMAGE).symlink_to("/dev/zero")


def link_to_itself(root: Path) -> None:
    (root / "benign" / IMAGE).unlink()
    (root / "benign" / IMAGE).symlink_to(root / "benign" / IMAGE)


def keep(*categories: str) -> Spoil:
    def spoil(root: Path) -> None:
        for path in root.glob("*/*.png"):
            if path.parent.name not in categories:
                path.unlink()

    return spoil


def only_two(root: Path) -> None:
    for path in root.glob("*/*.png"):
        if "(1)" not in path.name:
            path.unlink()


FAULTS: dict[str, tuple[Spoil, str]] = {
    "missing mask": (in_benign(MASK_NAME, None), IMAGE),
    "orphan mask": (in_benign(IMAGE, None), MASK_NAME),
    "mask of another size": (in_benign(MASK_NAME, png(MASK[:-1])), MASK_NAME),
    "turned mask": (in_benign(MASK_NAME, png(np.ascontiguousarray(MASK.T))), MASK_NAME),
    "16-bit image": (in_benign(IMAGE, png(PIXELS.astype(np.uint16) * 257)), IMAGE),
    "16-bit mask": (in_benign(MASK_NAME, png(MASK.astype(np.uint16) * 257)), MASK_NAME),
    "floating-point TIFF": (
        in_benign(IMAGE, png(PIXELS.astype(np.float32), format="TIFF")), IMAGE,
    ),
    "32-bit TIFF": (in_benign(IMAGE, png(PIXELS.astype(np.int32), format="TIFF")), IMAGE),
    "animated PNG": (
        in_benign(IMAGE, png(Image.fromarray(PIXELS), save_all=True,
                             append_images=[Image.fromarray(255 - PIXELS)])), IMAGE,
    ),
    "several TIFF pages": (
        in_benign(IMAGE, png(Image.fromarray(PIXELS), format="TIFF", save_all=True,
                             append_images=[Image.fromarray(PIXELS)])), IMAGE,
    ),
    "TIFF page without a size": (in_benign(IMAGE, tiff_with_an_empty_page()), IMAGE),
    "one pixel high": (in_benign(IMAGE, png(PIXELS[:1])), IMAGE),
    "one pixel wide": (in_benign(IMAGE, png(PIXELS[:, :1])), IMAGE),
    "truncated image": (in_benign(IMAGE, png(PIXELS)[:200]), IMAGE),
    "truncated mask": (in_benign(MASK_NAME, png(MASK)[:60]), MASK_NAME),
    "wrong checksum": (in_benign(IMAGE, wrong_checksum()), IMAGE),
    "empty file": (in_benign(IMAGE, b""), IMAGE),
    "text for an image": (in_benign(IMAGE, b"<html>404 Not Found</html>"), IMAGE),
    "random bytes": (in_benign(MASK_NAME, RNG.bytes(500)), MASK_NAME),
    "decompression bomb": (in_benign(IMAGE, bomb(60_000, 60_000)), IMAGE),
    "bomb with a lying header": (in_benign(IMAGE, bomb(9_000, 9_000)), IMAGE),
    "text chunk that unpacks to megabytes": (in_benign(IMAGE, text_bomb()), IMAGE),
    "folder for an image": (folder_for_a_file, MASK_NAME),
    "dangling link": (dangling_link, IMAGE),
    "link to itself": (link_to_itself, IMAGE),
    "pipe": (pipe, IMAGE),
    "link to a device": (link_to_a_device, IMAGE),
    "same name but for case": (in_benign("Benign (1).PNG", png(PIXELS)), "Benign (1).PNG"),
    "same number twice": (in_benign("benign (01).png", png(PIXELS)), "benign (01).png"),
    "no lesion images at all": (keep("normal"), "Dataset_BUSI_with_GT"),
    "too few to split": (only_two, "Dataset_BUSI_with_GT"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_named_and_nothing_is_left(kind, busi, tmp_path):
    spoil, name = FAULTS[kind]
    spoil(busi)
    out = tmp_path / "out"
    with pytest.raises(DMFError) as caught:
        convert_dataset("busi", busi, "mmseg", output=out)
    assert name in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("kind", [k for k in FAULTS if FAULTS[k][1] in (IMAGE, MASK_NAME)])
def test_skip_invalid_leaves_the_invalid_case_out(kind, busi, tmp_path):
    FAULTS[kind][0](busi)
    result = convert_dataset("busi", busi, "mmseg", output=tmp_path / "out", skip_invalid=True)
    assert len(result.cases) == 15
    assert any(FAULTS[kind][1] in remark for remark in result.remarks)


def loop(root: Path) -> None:
    (root / "benign" / "again").symlink_to(root, target_is_directory=True)


def litter(root: Path) -> None:
    (root / "__MACOSX" / "benign").mkdir(parents=True)
    (root / "__MACOSX" / "benign" / f"._{IMAGE}").write_bytes(b"\0\5\26\7")
    (root / "benign" / ".DS_Store").write_bytes(b"\0")
    (root / "benign" / "Thumbs.db").write_bytes(b"\0")
    (root / "readme.txt").write_text("hello")


def deep_and_odd(root: Path) -> None:
    odd = root / "Ünïcode [1] (кopia) 'q' & $x; 数据"
    odd.mkdir()
    (root / "benign").rename(odd / "benign")


def enormous_number(root: Path) -> None:
    for name in (IMAGE, MASK_NAME):
        path = root / "benign" / name
        path.rename(path.with_name(name.replace("(1)", "(99999999999999999999)")))


HARMLESS: dict[str, Spoil] = {
    "CMYK JPEG": in_benign(IMAGE, png(Image.fromarray(PIXELS).convert("CMYK"), format="JPEG")),
    "JPEG named PNG": in_benign(IMAGE, png(PIXELS, format="JPEG")),
    "palette image": in_benign(IMAGE, png(palette_image())),
    "colour image": in_benign(IMAGE, png(np.dstack([PIXELS, PIXELS // 2, PIXELS]))),
    "RGBA mask": in_benign(MASK_NAME, png(np.dstack([MASK, MASK, MASK, np.full_like(MASK, 255)]))),
    "mask of mode 1": in_benign(MASK_NAME, png(Image.fromarray(MASK).convert("1"))),
    "grey with alpha": in_benign(IMAGE, png(Image.fromarray(PIXELS).convert("LA"))),
    "interlaced": in_benign(IMAGE, png(PIXELS, interlace=1)),
    "empty mask": in_benign(MASK_NAME, png(0 * MASK)),
    "full mask": in_benign(MASK_NAME, png(0 * MASK + 255)),
    "soft mask": in_benign(MASK_NAME, png(Image.fromarray(MASK).resize((36, 28)))),
    "second mask": in_benign("benign (1)_mask_1.png", png(np.roll(MASK, 5, 0))),
    "empty class": keep("benign"),
    "folder loop": loop,
    "litter": litter,
    "odd folder names": deep_and_odd,
    "enormous number": enormous_number,
    "foreign image beside": in_benign("screenshot.png", png(PIXELS)),
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("to", ["mmseg", "nnunet"])
def test_what_can_be_read_is_read(kind, to, busi, tmp_path):
    HARMLESS[kind](busi)
    number = 7 if to == "nnunet" else None
    result = convert_dataset("busi", busi, to, output=tmp_path / "out", dataset_id=number)
    assert len(result.cases) == (8 if kind == "empty class" else 16)
    for path in result.target.rglob("*_0000.png" if to == "nnunet" else "img_dir/*/*.png"):
        assert Image.open(path).mode == "L"
    assert len(pd.read_csv(result.target / "manifest.csv")) == len(result.cases)


# ---------------------------------------------------------------- zips


def zipped(root: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, prefix + file.relative_to(root.parent).as_posix())
    return path


def test_a_zip_with_backslashes_in_its_names(busi, tmp_path):
    archive = tmp_path / "windows.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("benign\\", b"")
        for file in sorted(busi.rglob("*.png")):
            stream.writestr("\\".join(file.relative_to(busi).parts), file.read_bytes())
    result = convert_dataset("busi", archive, "mmseg", output=tmp_path / "out")
    assert len(result.cases) == 16


def test_zip_slip_writes_nothing_outside(busi, tmp_path):
    archive = zipped(busi, tmp_path / "slip.zip", prefix="../../../")
    before = set(tmp_path.rglob("*"))
    result = convert_dataset("busi", archive, "mmseg", output=tmp_path / "out")
    assert len(result.cases) == 16
    new = set(tmp_path.rglob("*")) - before
    assert all(p.is_relative_to(tmp_path / "out") for p in new)


def test_zip_bomb_is_named_and_not_unpacked(busi, tmp_path, monkeypatch):
    monkeypatch.setattr("dmf_plugins.data.source.MAX_FILE_BYTES", 8 << 20)
    (busi / "benign" / IMAGE).unlink()
    archive = zipped(busi, tmp_path / "bomb.zip")
    name = f"Dataset_BUSI_with_GT/benign/{IMAGE}"
    with (
        zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as stream,
        stream.open(name, "w", force_zip64=True) as member,
    ):
        for _ in range(9):
            member.write(bytes(1 << 20))
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"benign \(1\)\.png unpacks to over 8 MiB"):
        convert_dataset("busi", archive, "mmseg", output=tmp_path / "out")


def damage(archive: Path, how: str) -> None:
    content = bytearray(archive.read_bytes())
    if how == "cut short":
        content = content[: len(content) // 2]
    elif how == "encrypted":
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = content.index(signature)
            content[at + offset] |= 1
    elif how == "flipped bit":
        content[content.index(b"PK\x03\x04") + 300] ^= 0x40
    elif how == "unknown compression":
        for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            at = content.index(signature)
            content[at + offset] = 77
    archive.write_bytes(content)


@pytest.mark.parametrize("how", ["cut short", "encrypted", "flipped bit", "unknown compression"])
def test_a_damaged_zip_is_named(how, busi, tmp_path):
    archive = zipped(busi, tmp_path / "data.zip")
    damage(archive, how)
    with pytest.raises(DataError, match=r"data\.zip"):
        convert_dataset("busi", archive, "mmseg", output=tmp_path / "out")


def test_a_zip_within_a_zip_is_not_what_was_downloaded(busi, tmp_path):
    inner = zipped(busi, tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    with pytest.raises(DataError, match=r"outer\.zip.*as downloaded"):
        convert_dataset("busi", tmp_path / "outer.zip", "mmseg", output=tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["läsion [1] (a).png", "a\nb.png", "x;rm -rf.png", "a..png", "数据.png"]
)
def test_odd_file_names_become_safe_case_names(name, tmp_path):
    root = tmp_path / "Segmentation"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for i in range(8):
            pixels = MASK if folder == "masks" else RNG.integers(0, 256, MASK.shape, dtype=np.uint8)
            (root / folder / f"benign_{i}.png").write_bytes(png(pixels))
        (root / folder / name).write_bytes(png(MASK))
    result = convert_dataset("bus", root, "mmseg", output=tmp_path / "out")
    assert len(result.cases) == 9
    for case in result.cases:
        assert case.case_id.replace("_", "").replace("-", "").isalnum()
    ids = [case.case_id for case in result.cases]
    assert len({i.lower() for i in ids}) == len(ids)


def test_two_names_that_a_case_insensitive_disk_confuses(tmp_path):
    root = tmp_path / "Segmentation"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for i in range(6):
            (root / folder / f"img {i}.png").write_bytes(png(RNG.integers(0, 256, MASK.shape, dtype=np.uint8) if folder == "images" else MASK))  # fmt: skip
        for name in ("Case.png", "case.png"):
            (root / folder / name).write_bytes(png(MASK))
    if len(list((root / "images").iterdir())) < 8:
        pytest.skip("this disk does not tell upper from lower case")
    with pytest.raises(DataError, match=r"Case\.png|case\.png"):
        convert_dataset("bus", root, "mmseg", output=tmp_path / "out")


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("name", [f"benign/{IMAGE}", "benign"])
def test_what_may_not_be_read_is_named(name, busi, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)  # pytest's own are for one user
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    locked = busi / name
    locked.chmod(0)
    try:
        with nobody(), pytest.raises(DataError, match=re.escape(str(locked))):
            convert_dataset("busi", busi, "mmseg", output=tmp_path / "out")
    finally:
        locked.chmod(0o755)
