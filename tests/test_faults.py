"""Kills, full disks, read-only targets, files that change: all or nothing, and the rerun is the same."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dmf_plugins.atomic import MARK, building
from dmf_plugins.data import bilateral_filter, convert_dataset
from dmf_plugins.data.images import decode_gray, encode_png
from dmf_plugins.errors import DataError, UsageError

from .support.commands import dmf, wait

KILLS = 10


def digest(folder: Path) -> str:
    """Of every path and byte below ``folder``."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(path.relative_to(folder).as_posix().encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def convert_command(source: Path, output: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "dmf_plugins", "convert", "busi", source, "--to", "mmseg"]
    return [*map(str, command), "--output", str(output), *options]


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_conversion_leaves_nothing_half_made(phantoms, tmp_path, overwrite):
    expected = digest(convert_dataset("busi", phantoms, "mmseg", output=tmp_path / "whole").target)
    output = tmp_path / "out"
    target = output / "BUSI"
    before, options = None, []

    def reset() -> None:
        if overwrite:
            convert_dataset("busi", phantoms, "mmseg", output=output, seed=1, overwrite=True)
        else:
            shutil.rmtree(target, ignore_errors=True)

    def at_work() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            convert_command(phantoms, output, *options),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        begun = f".dmf-partial-{process.pid}-*"
        wait(lambda: list(output.glob(begun)) or process.poll() is not None, 60)
        return process

    reset()
    if overwrite:
        before, options = digest(target), ["--overwrite"]
    process, start = at_work(), time.monotonic()
    assert process.wait(60) == 0
    duration = time.monotonic() - start
    rng = random.Random(0)
    moments = 0
    for _ in range(KILLS):
        reset()
        process = at_work()
        time.sleep(rng.uniform(0, duration))
        moments += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():
            assert digest(target) in (expected, before)
        else:
            assert not overwrite
    assert moments >= 3, moments  # it was hit at work, not only before or after
    reset()
    done = subprocess.run(convert_command(phantoms, output, *options), check=False)
    assert done.returncode == 0
    assert digest(target) == expected
    assert [p.name for p in output.iterdir()] == ["BUSI"]


def test_replacing_is_one_step_where_the_system_can(tmp_path, monkeypatch):
    for fallback in (False, True):
        if fallback:
            monkeypatch.setattr("dmf_plugins.atomic._exchange", lambda a, b: False)
        target = tmp_path / f"target{fallback}"
        for name in ("old", "new"):
            with building(target, "filter", overwrite=True) as folder:
                (folder / name).touch()
                assert name == "old" or (target / "old").exists()
        assert sorted(p.name for p in target.iterdir()) == [MARK, "new"]
        assert not list(tmp_path.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)],
        capture_output=True, check=False,
    ) if shutil.which("mount") else None  # fmt: skip
    if mount is None or mount.returncode != 0:
        pytest.skip("this process may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_what_was_there(phantoms, small_disk):
    (small_disk / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"No space left.*nothing was changed"):
        convert_dataset("busi", phantoms, "mmseg", output=small_disk)
    assert [p.name for p in small_disk.iterdir()] == ["notes.txt"]


def test_a_read_only_disk_is_named(phantoms, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsageError, match=r"cannot write in .*disk.*[Rr]ead-only"):
        convert_dataset("busi", phantoms, "mmseg", output=small_disk)


def test_a_limit_on_file_size_leaves_nothing(phantoms, tmp_path):
    """As a quota does: writing fails in the middle, without a mount."""
    result = subprocess.run(
        convert_command(phantoms, tmp_path / "out"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, "File too large" in result.stderr) == (2, True), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_a_file_or_below_one_is_named(phantoms, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file"):
        convert_dataset("busi", phantoms, "mmseg", output=tmp_path / "file" / "deep")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_changes_while_it_is_read(phantoms, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(phantoms, source)
    victim = source / "benign" / "benign (1).png"
    first = decode_gray(victim.read_bytes(), "")
    versions = [encode_png(first), encode_png(np.ascontiguousarray(first[::-1]))]
    torn = versions[0][: len(versions[0]) // 2]
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for content in (*versions, torn):
                victim.write_bytes(content)

    thread = threading.Thread(target=rewrite)
    thread.start()
    outcomes: set[str] = set()
    try:
        for attempt in range(12):
            output = tmp_path / f"out{attempt}"
            try:
                result = convert_dataset("busi", source, "mmseg", output=output)
            except DataError as error:
                outcomes.add(str(error))
                assert not output.exists()
                continue
            manifest = pd.read_csv(result.target / "manifest.csv", index_col="case")
            row = manifest.loc["benign_001"]
            used = [v for v in versions if hashlib.sha256(v).hexdigest() == row["sha256"]]
            assert len(used) == 1  # the checksum is of the very bytes that were converted
            written = result.target / "img_dir" / row["split"] / "benign_001.png"
            np.testing.assert_array_equal(
                decode_gray(written.read_bytes(), ""), bilateral_filter(decode_gray(used[0], ""))
            )
    finally:
        stop.set()
        thread.join()
    assert all("benign (1).png" in message for message in outcomes)


def test_a_killed_filter_leaves_nothing_that_stays(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 256, (400, 400), dtype=np.uint8)
        (source / f"{i}.png").write_bytes(encode_png(noise))
    process = subprocess.Popen(
        [sys.executable, "-m", "dmf_plugins", "filter", source, "-o", target],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    begun = ".dmf-partial-*/1.png"
    wait(lambda: list(tmp_path.glob(begun)) or process.poll() is not None, 60)
    process.kill()
    process.wait()
    assert not target.exists()
    # any later run beside it clears it away
    assert dmf("filter", source / "0.png", "-o", tmp_path / "one.png").returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "one.png"]
