"""Where ``dmf`` writes: it replaces only what it wrote, and what it writes is whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dmf_plugins.atomic import MARK, building, claim, writing
from dmf_plugins.errors import UsageError

from .support.commands import dmf


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name in "ab":
        Image.new("L", (8, 8), 1).save(folder / f"{name}.png")
    return folder


def commands(phantoms: Path, labels: Path, target: Path) -> dict[str, list[object]]:
    """A command that writes the folder ``target``, by name."""
    convert = ["convert", "busi", phantoms, "--output", target.parent, "--to"]
    return {
        "convert to mmseg": [*convert, "mmseg"],
        "convert to nnunet": [*convert, "nnunet", "--dataset-id", 501],
        "copy-configs": ["copy-configs", target],
        "filter": ["filter", labels, target],
        "evaluate": ["evaluate", labels, labels, "--labels", "x=1", "--no-distances", "--out", target],
        "demo": ["demo", "--output", target],
        "grid": ["grid", phantoms, "--output", target, "--jobs"],
    }  # fmt: skip


NAMES = {"convert to mmseg": "BUSI", "convert to nnunet": "Dataset501_BUSI"}
KINDS = ["convert to mmseg", "convert to nnunet", "copy-configs", "filter", "evaluate"]


@pytest.mark.parametrize("kind", [*KINDS, "demo", "grid"])
def test_what_we_did_not_write_is_never_replaced(kind, phantoms, labels, tmp_path):
    if kind == "demo":
        pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    target = tmp_path / NAMES.get(kind, "mine")
    target.mkdir()
    (target / "per_image.csv").write_text("years of work")
    command = commands(phantoms, labels, target)[kind]
    result = dmf(*command, *["--overwrite"] * (kind != "grid"))
    assert result.returncode == 2, result.stderr
    assert f"{target} is not empty and was not written by" in result.stderr
    assert "choose another folder" in result.stderr
    assert [p.name for p in tmp_path.rglob("*")] == [target.name, "per_image.csv"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_folder_is_used_and_what_we_wrote_is_replaced(kind, phantoms, labels, tmp_path):
    target = tmp_path / NAMES.get(kind, "mine")
    target.mkdir()
    command = commands(phantoms, labels, target)[kind]
    assert dmf(*command).returncode == 0
    assert json.loads((target / MARK).read_text())["written by"] == f"dmf {kind.split()[0]}"
    again = dmf(*command)
    assert (again.returncode, "--overwrite replaces it" in again.stderr) == (2, True)
    (target / ".DS_Store").touch()
    (target / "__pycache__").mkdir()
    (target / "__pycache__" / "a.pyc").touch()
    assert dmf(*command, "--overwrite").returncode == 0
    (target / "notes").mkdir()
    mine = target / "notes" / "mine.txt"
    mine.write_text("years of work")
    for options in ([], ["--overwrite"]):
        kept = dmf(*command, *options)
        assert (kept.returncode, f"{mine} was not written by" in kept.stderr) == (2, True)
    assert mine.read_text() == "years of work"


def test_a_mark_must_be_readable_and_of_the_same_kind(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    for content in ("", "{", "[]", '"convert"', '{"kind": "export"}', "\0\xff"):
        (target / MARK).write_text(content)
        with pytest.raises(UsageError, match="not written by"), building(target, "convert", True):
            pass
    assert [p.name for p in target.iterdir()] == [MARK]


def make_file(target: Path) -> None:
    target.write_text("mine")


def make_link(target: Path) -> None:
    elsewhere = target.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    target.symlink_to(elsewhere, target_is_directory=True)


def make_loop(target: Path) -> None:
    target.symlink_to(target)


@pytest.mark.parametrize("make", [make_file, make_link, make_loop])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_target_that_is_no_folder_leaves_nothing_hidden(make, options, labels, tmp_path):
    target = tmp_path / "out"
    make(target)
    before = sorted(tmp_path.rglob("*"))
    result = dmf("filter", labels, target, *options)
    assert (result.returncode, str(tmp_path) in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    target.unlink()
    assert dmf("filter", labels, target).returncode == 0


def test_a_link_to_a_folder_of_ours_stays_a_link(labels, tmp_path):
    """As where a home directory is small and ``data`` points at a large disk."""
    (tmp_path / "disk").mkdir()
    target = tmp_path / "out"
    target.symlink_to(tmp_path / "disk" / "out")
    assert dmf("filter", labels, target).returncode == 0
    assert dmf("filter", labels, target, "--overwrite").returncode == 0
    assert target.is_symlink()
    assert (tmp_path / "disk" / "out" / "a.png").is_file()
    assert len(list((tmp_path / "disk").iterdir())) == 1


@pytest.mark.slow
def test_of_two_runs_on_one_target_one_wins(phantoms, tmp_path):
    command = commands(phantoms, phantoms, tmp_path / "BUSI")["convert to mmseg"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "dmf_plugins", *map(str, command), "--seed", str(seed)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(3)
    ]  # fmt: skip
    outcomes = [(run.communicate()[1], run.returncode) for run in runs]
    assert sorted(code != 0 for _, code in outcomes) == [False, True, True]
    for message, code in outcomes:
        assert code == 0 or str(tmp_path / "BUSI") in message
        assert "Traceback" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["BUSI"]


@pytest.mark.parametrize("build", [building, lambda target, _: writing(target)])
def test_who_ends_second_loses(build: Callable, tmp_path):
    target = tmp_path / "target"
    with (
        pytest.raises(UsageError, match=r"cannot write .*target"),
        build(target, "filter"),
        building(target, "filter") as first,
    ):
        (first / "first").touch()
    assert sorted(p.name for p in target.iterdir()) == [MARK, "first"]
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_a_claimed_folder_is_emptied_only_if_it_was_ours(tmp_path):
    target = tmp_path / "demo"
    claim(target, "demo")
    (target / "old").mkdir()
    with pytest.raises(UsageError, match="--overwrite"):
        claim(target, "demo")
    claim(target, "demo", overwrite=True)
    assert [p.name for p in target.iterdir()] == [MARK]
