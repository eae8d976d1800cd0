"""The documentation builds, its examples run, and its notebook works."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import pytest

import dmf_plugins

from .support.commands import run

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(dmf_plugins.__file__).parent


def modules_with_examples() -> list[str]:
    return [
        ".".join(("dmf_plugins", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in sorted(PACKAGE.rglob("*.py"))
        if ">>>" in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("module", modules_with_examples())
def test_the_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="mkdocs-material and mkdocstrings are not installed")
    if not (ROOT / "mkdocs.yml").exists():
        pytest.skip("the tests run without the source")
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path, cwd=ROOT)
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="dmf_plugins.{name}"' in api for name in ("DMFLoss", "DynamicMemoryFusion"))
    assert ":class:" not in api
    assert "fonts.googleapis" not in (tmp_path / "index.html").read_text(encoding="utf-8")
