"""Whatever the file system or an argument is, ``dmf`` says what is wrong in a line, without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from .support.commands import DMF, dmf


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (12, 10), 1).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image(tmp_path / "in" / "a.png").parent


def fails(result: subprocess.CompletedProcess[str], code: int, *words: object) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 6
    for word in words:
        assert str(word) in result.stderr


@pytest.mark.parametrize("command", ["filter", "evaluate", "copy-configs", "grid", "demo"])
def test_an_output_that_is_a_file_or_below_one(command, images, tmp_path):
    if command == "demo":
        pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    (tmp_path / "file").write_text("mine")
    inputs = {"filter": [images], "evaluate": [images, images, "--labels", "x=1"], "grid": [images]}
    fails(
        dmf(command, *inputs.get(command, []), "--output", tmp_path / "file"), 2, "is not a folder"
    )
    if command == "filter":
        below = dmf("filter", images, "--output", tmp_path / "file" / "below")
        fails(below, 2, f"cannot write in {tmp_path / 'file'}: not a folder")
    assert (tmp_path / "file").read_text() == "mine"


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    os.mkfifo(path)  # reading it would wait for ever


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")  # reading it would never end


@pytest.mark.parametrize("make", [folder, loop, dangling, pipe, device])
def test_an_input_that_is_no_file(make: Callable[[Path], None], images, tmp_path):
    make(images / "b.png")
    fails(dmf("filter", images, "-o", tmp_path / "out"), 1, images / "b.png", "not a regular file")
    result = dmf("evaluate", images, images, "--labels", "x=1")
    fails(result, 1, images / "b.png", "not a regular file")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_input_that_cannot_be_read(tmp_path):
    """Also as root, whom permissions do not stop."""
    source = Path("/proc/self/mem")
    if not source.exists():
        pytest.skip("no /proc here")
    fails(dmf("filter", source, "-o", tmp_path / "a.png"), 1, f"cannot read {source}")
    assert not list(tmp_path.iterdir())


def test_names_as_long_as_the_system_allows(tmp_path):
    long = "n" * 251 + ".png"
    image(tmp_path / "in" / long)
    assert dmf("filter", tmp_path / "in" / long, "-o", tmp_path / long).returncode == 0
    assert (tmp_path / long).is_file()
    target = tmp_path / ("o" * 255)
    assert dmf("filter", tmp_path / "in", "-o", target).returncode == 0
    assert (target / long).is_file()
    result = dmf("filter", tmp_path / "in", "-o", tmp_path / "out", "--nnunet")
    fails(result, 2, "nnn_0000.png: File name too long", "nothing was changed")
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_text(images, tmp_path):
    os.rename(os.fsencode(images / "a.png"), os.fsencode(images) + b"/\xff\xe9.png")
    target = os.fsdecode(os.fsencode(tmp_path) + b"/out\xff")
    result = subprocess.run(
        [sys.executable, DMF, "filter", images, "-o", target], capture_output=True, check=False
    )
    assert (result.returncode, b"wrote 1 image" in result.stdout) == (0, True), result.stderr
    result = dmf("evaluate", images, images, "--labels", "x=1", "-o", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    assert "\\udcff" in (tmp_path / "report" / "per_image.csv").read_text()


def test_a_working_directory_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} {DMF} paths --nnunet"
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    fails(result, 2, "the working directory is gone")


@pytest.mark.parametrize(
    "options",
    [
        ("evaluate", "IN", "IN", "--workers", -3),
        ("evaluate", "IN", "IN", "--seed", -1),
        ("grid", "IN", "--workers", -1),
        ("grid", "IN", "--seeds", 0),
        ("grid", "IN", "--size", 8),
        ("grid", "IN", "--dataset", "busy"),
        ("filter", "IN", "--output", ""),
        ("filter", "", "--output", "OUT"),
        ("evaluate", "IN", "IN", "--out", ""),
        ("filter", "IN"),
        ("filter", "IN", "OUT", "--output", "OUT"),
    ],
)
def test_a_wrong_argument_is_told_before_the_work(options, images, tmp_path):
    named = {"IN": images, "OUT": tmp_path / "out"}
    fails(dmf(*[named.get(option, option) for option in options]), 2)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_output_as_it_was_given_before(images, tmp_path):
    """By --out, or as the last argument."""
    assert dmf("filter", images, tmp_path / "filtered").returncode == 0
    command = ("evaluate", images, images, "--labels", "x=1", "--no-distances")
    assert dmf(*command, "--out", tmp_path / "report").returncode == 0
    assert (tmp_path / "filtered" / "a.png").is_file()
    assert (tmp_path / "report" / "summary.md").is_file()


def test_stdout_holds_results_alone(images):
    result = dmf("evaluate", images, images, "--labels", "x=1", "--no-distances")
    assert result.stdout.startswith("| | dice")
    assert "evaluating" in result.stderr


def test_a_closed_pipe_is_no_error_of_ours(phantoms, tmp_path):
    command = [sys.executable, DMF, "convert", "busi", phantoms, "--to", "mmseg", "-o", tmp_path]
    run = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run.stdout.close()
    _, message = run.communicate()
    assert run.returncode == 141  # as a shell reports SIGPIPE
    assert "Traceback" not in message
    assert "Broken pipe" not in message
    assert (tmp_path / "BUSI" / "manifest.csv").is_file()


@pytest.mark.parametrize(
    ("name", "words"),
    [("gpu", "cuda, mps, cpu"), ("cuda:1", "CUDA_VISIBLE_DEVICES"), ("mps", "cpu")],
)
def test_the_demo_checks_its_device_first(name, words, tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    if name == "mps" and sys.platform == "darwin":
        pytest.skip("macOS may have the device mps")
    result = dmf("demo", "--device", name, "--output", tmp_path / "demo")
    fails(result, 2, "--device", words)
    assert not list(tmp_path.iterdir())
