"""What the tests of the MMSegmentation side share: a tiny config, and how to run it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mmseg.models", reason="MMSegmentation does not work", exc_type=ImportError)

from mmengine.config import Config
from mmengine.runner import Runner

from dmf_plugins.paths import bundled

from ..support.mmseg import TINY

TOOLS = Path(__import__("mmseg").__file__).parent / ".mim" / "tools"
CONFIGS = bundled("mmseg_configs")


def tiny_config(work_dir: Path, **changes: Any) -> Config:
    """The tiny config with changes merged in; its data come from ``DMF_TEST_DATA``."""
    # formatted, as it is for every checkpoint, it would take longer than the training
    content = Config.fromfile(TINY).to_dict()
    cfg = Config(content, filename=str(TINY), format_python_code=False)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = str(uuid.uuid4())  # visualizers are kept by name
    cfg.visualizer.name = cfg.experiment_name
    cfg.merge_from_dict(changes)
    return cfg


def train(cfg: Config) -> Runner:
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def loss_of(runner: Runner) -> Any:
    return runner.model.decode_head.loss_decode


def table(cfg: Config, name: str = "dmf_log.csv") -> pd.DataFrame:
    return pd.read_csv(Path(cfg.work_dir) / name)


def scalars(cfg: Config) -> list[dict[str, Any]]:
    path = next(Path(cfg.work_dir).glob("*/vis_data/scalars.json"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_text(cfg: Config) -> str:
    return "".join(p.read_text() for p in sorted(Path(cfg.work_dir).glob("*/*.log")))
