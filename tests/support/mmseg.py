"""A small config of MMSegmentation with converted phantoms."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dmf_plugins.paths import bundled

TINY = Path(__file__).parents[1] / "mmseg" / "tiny.py"


@pytest.fixture(scope="session")
def mmseg_environment(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables with which ``TINY`` finds what it inherits and its data."""
    from dmf_plugins.data import convert_dataset

    folder = tmp_path_factory.mktemp("mmdata")
    convert_dataset("busi", phantoms, "mmseg", output=folder, size=(64, 64))
    return {
        **os.environ,
        "DMF_CONFIGS": str(bundled("mmseg_configs")),
        "DMF_TEST_DATA": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def command(*arguments: object) -> list[str]:
    """A trial's command in a process of its own."""
    return [sys.executable, "-m", "dmf_plugins", "trial", "mmseg", *map(str, arguments)]
