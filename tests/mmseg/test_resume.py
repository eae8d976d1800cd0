"""Checkpoints and resume: bit-exact, refused with a reason, or changed on purpose."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch

from dmf_plugins.errors import DataError

from ..support.forked import forked
from .support import TINY, TOOLS, Config, Runner, log_text, loss_of, table, tiny_config, train

# isort: split
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner._flexible_runner import FlexibleRunner

import dmf_plugins.mmseg

HEAD = "decode_head.loss_decode"


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    """A copy of the training of one epoch, to resume or to spoil."""
    folder = Path(shutil.copytree(trained, tmp_path / "work"))
    (folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))
    return folder


def resumed(work: Path, epochs: int = 2, **changes) -> Config:
    changes = {"model.decode_head.loss_decode.weighting": "uncertainty", **changes}
    # a better checkpoint would make mmengine remove the one of the training that was copied
    changes["default_hooks.checkpoint.save_best"] = None
    return tiny_config(work, resume=True, **{"train_cfg.max_epochs": epochs, **changes})


KILLED = """
import os, signal, sys
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

class Kill(Hook):
    def after_train_iter(self, runner, **kwargs):
        if runner.iter == 7:
            os.kill(os.getpid(), signal.SIGKILL)

runner = Runner.from_cfg(Config.fromfile(sys.argv[1]))
runner.register_hook(Kill())
runner.train()
"""


@pytest.mark.slow
def test_resume_after_a_kill_equals_an_uninterrupted_run(config, tmp_path):
    """Four epochs in one go equal kill -9 in the midst of the third, and --resume: random flips in
    workers that outlive epochs, dropout, and (where no seed is set) the order of the images."""
    changes = {"train_dataloader.num_workers": 2, "train_dataloader.persistent_workers": True}
    changes["model.decode_head.dropout_ratio"] = 0.1
    first = config("resumed", **{"randomness.seed": None}, **changes)
    first.dump(str(tmp_path / "first.py"))
    forked("-c", KILLED, tmp_path / "first.py", code=-signal.SIGKILL)
    assert not (Path(first.work_dir) / "epoch_3.pth").exists()
    kept = torch.load(Path(first.work_dir) / "epoch_2.pth", weights_only=True)
    with (Path(first.work_dir) / "dmf_log.csv").open("a") as stream:
        stream.write("2,6,0.1\n")  # a line cut short
    # a run without a seed of its own draws one; the uninterrupted run is given the same
    seeded = {"randomness.seed": kept["meta"]["seed"], **changes}
    whole = config("whole", **seeded)
    second = config("resumed", resume=True, **{"randomness.seed": None}, **changes)
    middle = str(Path(whole.work_dir) / "epoch_2.pth")
    third = config("seeded", resume=True, load_from=middle, **seeded)
    for cfg in (whole, second, third):
        train(cfg)
    pd.testing.assert_frame_equal(table(second), table(whole))
    a, *others = (
        torch.load(Path(c.work_dir) / "epoch_4.pth", weights_only=True)
        for c in (whole, second, third)
    )
    for b in others:
        for key, value in a["dmf"][HEAD].items():
            other = b["dmf"][HEAD][key]
            assert torch.equal(value, other) if torch.is_tensor(value) else value == other
        assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())


@pytest.mark.slow
def test_changed_settings_are_named_and_taken_on_purpose(work, monkeypatch):
    changed = {
        "model.decode_head.loss_decode.gamma0": 50.0,
        "model.decode_head.loss_decode.batch_dice": False,
    }
    with pytest.raises(RuntimeError) as refused:
        train(resumed(work, **changed))
    for part in ("gamma0", "5.0", "50.0", "batch_dice", "custom_hooks.0.resume=new", "DMF_RESUME"):
        assert part in str(refused.value)
    cfg = resumed(work, **changed, **{"custom_hooks.0.resume": "new"})
    runner = train(cfg)
    assert loss_of(runner).loss.fusion.step == 6
    assert loss_of(runner).loss.fusion.config.gamma0 == 50
    assert "resumed at step 3 with weights ce" in log_text(cfg)
    monkeypatch.setenv("DMF_RESUME", "afresh")
    cfg = resumed(work, 3, **changed, **{"model.decode_head.loss_decode.memory_size": 9})
    assert loss_of(train(cfg)).loss.fusion.step == 3  # of the third epoch alone
    assert table(cfg)["step"].tolist() == list(range(9))
    monkeypatch.setenv("DMF_RESUME", "later")
    with pytest.raises(ValueError, match=r"DMF_RESUME.*'later'"):
        dmf_plugins.mmseg.DMFHook()


@pytest.mark.slow
def test_a_checkpoint_without_memory_is_refused_for_resume_alone(work, tmp_path):
    path = work / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["dmf"]
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match=r"no DMF memory.*load_from without resume"):
        train(resumed(work))
    fresh = Runner.from_cfg(tiny_config(tmp_path / "fresh", load_from=str(path)))
    fresh.load_or_resume()  # network weights alone are welcome
    assert loss_of(fresh).loss.fusion.step == 0


@pytest.mark.slow
def test_flexible_runner_resumes(work):
    runner = FlexibleRunner.from_cfg(resumed(work))
    runner.train()
    assert loss_of(runner).loss.fusion.step == 6
    assert len(pd.read_csv(work / "dmf_log.csv")) == 6


@pytest.mark.slow
def test_every_reader_takes_our_checkpoints(trained, tmp_path):
    """Under torch's safe loading and without this package: mmseg's own tool for publishing too."""
    path = trained / "epoch_1.pth"
    block = tmp_path / "block" / "dmf_plugins"
    block.mkdir(parents=True)
    (block / "__init__.py").write_text("raise ImportError")
    code = (
        "import sys, torch; from mmengine.config import Config; from mmseg.registry import MODELS;"
        "from mmseg.utils import register_all_modules; register_all_modules();"
        "cfg = Config.fromfile(sys.argv[1], import_custom_modules=False).model;"
        "cfg.decode_head.loss_decode = dict(type='CrossEntropyLoss');"
        "model = MODELS.build(cfg);"
        "state = torch.load(sys.argv[2], weights_only=True)['state_dict'];"
        "ours = [k for k in state if '.loss_decode.' in k];"  # of the learned weights
        "assert len(ours) == 1, ours; del state[ours[0]];"
        "model.load_state_dict(state, strict=True)"
    )
    environment = {"cwd": tmp_path, "PYTHONPATH": str(block.parent)}
    forked("-c", code, TINY, path, **environment)
    forked(TOOLS / "misc" / "publish_model.py", path, tmp_path / "public.pth", **environment)


def test_the_log_survives_the_way_to_plain_data_and_back(trained):
    hub = CheckpointLoader.load_checkpoint(str(trained / "epoch_1.pth"), "cpu")["message_hub"]
    assert isinstance(hub["log_scalars"]["train/loss"], dict)
    dmf_plugins.mmseg.checkpoint.from_plain(hub)
    log = hub["log_scalars"]["train/loss"]
    assert isinstance(log, HistoryBuffer)
    assert len(log.data[0]) == 3
    assert log.mean(2) == pytest.approx(log.data[0][-2:].mean())


def test_a_checkpoint_of_stock_mmseg_is_explained(trained, tmp_path, monkeypatch):
    path = tmp_path / "stock.pth"
    content = torch.load(trained / "epoch_1.pth", weights_only=True)
    content["message_hub"]["log_scalars"] = {"train/loss": HistoryBuffer([1.0], [1])}
    torch.save(content, path)
    with pytest.raises(DataError, match=r"stock\.pth holds Python objects.*torch >= 2\.6"):
        CheckpointLoader.load_checkpoint(str(path), "cpu")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert CheckpointLoader.load_checkpoint(str(path), "cpu")["state_dict"]


def test_a_checkpoint_cut_short_is_never_a_silent_cold_start(work):
    path = work / "epoch_1.pth"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"epoch_1\.pth is damaged"):
        train(resumed(work))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"epoch_1\.pth is damaged"):
        train(resumed(work))
