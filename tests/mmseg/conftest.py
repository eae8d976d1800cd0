"""Data and configs of the MMSegmentation tests, and one training that many of them look at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .support import tiny_config, train


@pytest.fixture(scope="session")
def data(mmseg_environment: dict[str, str]) -> Path:
    for name in ("DMF_CONFIGS", "DMF_TEST_DATA"):  # for configs that are read in this process
        os.environ[name] = mmseg_environment[name]
    return Path(os.environ["DMF_TEST_DATA"])


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Callable:
    """Factory of the tiny config with changes merged in."""
    return lambda work="work", **changes: tiny_config(tmp_path / work, **changes)


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of one epoch, validated; not to be changed."""
    work_dir = tmp_path_factory.mktemp("trained") / "work"
    cfg = tiny_config(work_dir, **{"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1})
    # a rule with a parameter, so that the checkpoint holds one
    cfg.model.decode_head.loss_decode.weighting = "uncertainty"
    train(cfg)
    return work_dir
