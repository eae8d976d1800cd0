"""MMSegmentation with real Runners: steps, logs, hooks, tools, several processes."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from dmf_plugins.cli import app
from dmf_plugins.data import convert_dataset

from ..conftest import free_port
from ..support.forked import fork, forked
from .support import (
    CONFIGS,
    TINY,
    TOOLS,
    Config,
    Runner,
    log_text,
    loss_of,
    scalars,
    table,
    tiny_config,
    train,
)

# isort: split
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

import dmf_plugins.mmseg as plugin


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Runner]:
    """Four epochs, for several tests to look at."""
    changes = {"default_hooks.logger.interval": 2, "log_processor.window_size": 2}
    cfg = tiny_config(tmp_path_factory.mktemp("whole") / "work", **changes)
    cfg.model.decode_head.loss_decode.loss_weight = 0.5
    return cfg, train(cfg)


@pytest.mark.slow
def test_training_logs_saves_and_evaluates(whole):
    cfg, runner = whole
    log = table(cfg)
    assert log["step"].tolist() == list(range(12))
    assert log["epoch"].tolist() == [epoch for epoch in range(4) for _ in range(3)]
    assert log["weight_ce"].nunique() > 5
    assert (Path(cfg.work_dir) / "dmf_dynamics.png").stat().st_size > 10_000
    logged = scalars(cfg)
    keys = {key for row in logged for key in row}
    assert {"dmf/weight_ce", "dmf/value_dice", "dmf/gamma", "dmf/auxiliary", "lesion_dice"} <= keys
    assert not any("loss" in key for key in keys if "dmf/" in key)
    # LoggerHook prints weights and gamma; backends get the rest too
    steps = [row for row in logged if "dmf/weight_ce" in row]
    others = [row for row in logged if "dmf/total" in row and row["step"] % 3 == 2]
    assert steps[0].keys() & others[0].keys() == {"step"}
    lines = [line for line in log_text(cfg).splitlines() if "Epoch(train)" in line]
    assert all("dmf/gamma" in line and "dmf/value_ce" not in line for line in lines)
    assert max(map(len, lines)) < 300
    np.testing.assert_allclose(
        [r["dmf/weight_ce"] for r in steps], log["weight_ce"][1::3], rtol=1e-4
    )
    # means of two iterations, the window, as for mmengine's own loss; nothing else is summed into it
    np.testing.assert_allclose(
        [r["dmf/total"] for r in others], [r["loss"] for r in steps], rtol=1e-4
    )
    means = log["total"].to_numpy().reshape(4, 3)[:, :2].mean(axis=1)
    np.testing.assert_allclose([r["loss"] for r in steps], means, rtol=1e-3)
    checkpoint = torch.load(Path(cfg.work_dir) / "epoch_4.pth", weights_only=True)
    assert checkpoint["dmf"]["decode_head.loss_decode"]["step"] == 12
    assert not any("dmf" in key or "loss" in key for key in checkpoint["state_dict"])
    assert loss_of(runner).loss.fusion.step == 12
    assert "DMF: variance weights of ce, iou, dice from the last 8 steps" in log_text(cfg)


@pytest.mark.slow
def test_learned_weights_are_in_the_optimizer_the_log_and_the_checkpoint(config):
    loss = "model.decode_head.loss_decode"
    whole = config("whole", **{f"{loss}.weighting": "uncertainty", "train_cfg.max_epochs": 2})
    runner = train(whole)
    learned = loss_of(runner).loss.fusion.rule.log_variance.detach()
    assert (learned != 0).all()  # Adam moved every one
    log = table(whole)
    torch.testing.assert_close(
        torch.tensor(log[["weight_ce", "weight_iou", "weight_dice"]].to_numpy()[0]).float(),
        torch.full((3,), 1 / 3),
    )
    assert log["weight_ce"].nunique() > 3
    checkpoint = torch.load(Path(whole.work_dir) / "epoch_1.pth", weights_only=True)
    assert not torch.equal(checkpoint["dmf"]["decode_head.loss_decode"]["log_variance"], learned)
    resumed = config(
        "resumed",
        **{f"{loss}.weighting": "uncertainty", "train_cfg.max_epochs": 1},
        resume=True,
        load_from=str(Path(whole.work_dir) / "epoch_1.pth"),
    )
    again = loss_of(train(resumed)).loss.fusion.rule.log_variance.detach()
    assert torch.equal(again, checkpoint["dmf"]["decode_head.loss_decode"]["log_variance"])


@pytest.mark.slow
def test_hook_without_loss_and_loss_without_hook(config):
    with pytest.raises(RuntimeError, match=r"custom_hooks=\[dict\(type='DMFHook'\)\]"):
        train(config("a", custom_hooks=[]))
    cfg = config("b")
    cfg.model.decode_head.loss_decode = dict(type="CrossEntropyLoss")
    with pytest.raises(RuntimeError, match="DMFHook found no DMFLoss"):
        train(cfg)


@pytest.mark.slow
def test_two_heads_have_memories_of_their_own(config):
    head = dict(
        type="FCNHead", in_channels=8, in_index=3, channels=4, num_convs=1, concat_input=False,
        num_classes=2, align_corners=False,
        loss_decode=dict(type="DMFLoss", losses=["ce", "dice"], auxiliary=None, loss_weight=0.4),
    )  # fmt: skip
    cfg = config(**{"train_cfg.max_epochs": 1})
    cfg.model.auxiliary_head = head
    runner = train(cfg)
    assert runner.model.auxiliary_head.loss_decode.loss.names == ("ce", "dice")
    keys = {key for row in scalars(cfg) for key in row}
    assert {"dmf/decode_head/weight_iou", "dmf/auxiliary_head/weight_dice"} <= keys
    assert not any("loss" in key for key in keys if "dmf/" in key)
    checkpoint = torch.load(Path(cfg.work_dir) / "epoch_1.pth", weights_only=True)
    assert set(checkpoint["dmf"]) == {"decode_head.loss_decode", "auxiliary_head.loss_decode"}
    assert (
        len(table(cfg, "dmf_decode_head_log.csv"))
        == len(table(cfg, "dmf_auxiliary_head_log.csv"))
        == 3
    )


@pytest.mark.slow
@pytest.mark.parametrize("update_buffers", [True, False])
def test_ema_does_not_touch_the_memory(config, whole, update_buffers):
    plain = torch.load(Path(whole[0].work_dir) / "epoch_2.pth", weights_only=True)["dmf"]
    changes = {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 1}
    changes["model.decode_head.loss_decode.loss_weight"] = 0.5
    cfg = config(**changes)
    hook = dict(type="EMAHook", update_buffers=update_buffers)
    cfg.custom_hooks = [*cfg.custom_hooks, hook]
    state = loss_of(train(cfg)).loss.state_dict_dmf()
    saved = torch.load(Path(cfg.work_dir) / "epoch_2.pth", weights_only=True)["dmf"]
    for other in (state, saved["decode_head.loss_decode"]):
        for key, value in plain["decode_head.loss_decode"].items():
            assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
    resumed = config(resume=True, **{**changes, "train_cfg.max_epochs": 3})
    resumed.custom_hooks = cfg.custom_hooks
    assert loss_of(train(resumed)).loss.fusion.step == 9


KNET_UPDATE = dict(
    type="KernelUpdateHead", num_classes=2, num_heads=2, feedforward_channels=8, in_channels=4,
    out_channels=4, conv_kernel_size=1,
    feat_transform_cfg=dict(conv_cfg=dict(type="Conv2d"), act_cfg=None),
    kernel_updator_cfg=dict(
        type="KernelUpdator", in_channels=4, feat_channels=4, out_channels=4,
        act_cfg=dict(type="ReLU"), norm_cfg=dict(type="LN"),
    ),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("head", ["DAHead", "IterativeDecodeHead"])
def test_a_head_with_several_calls_makes_one_record_per_iteration(config, head):
    """DANet calls its loss three times per iteration, K-Net four times."""
    cfg = config(**{"train_cfg.max_epochs": 2, "default_hooks.checkpoint.interval": 2})
    plain = cfg.model.decode_head
    if head == "DAHead":
        kept = {k: plain[k] for k in ("channels", "num_classes", "loss_decode")}
        cfg.model.decode_head = dict(type=head, in_channels=8, in_index=3, pam_channels=2, **kept)
    else:
        plain.num_convs = 1
        cfg.model.decode_head = dict(
            type=head,
            num_stages=3,
            kernel_update_head=[KNET_UPDATE] * 3,
            kernel_generate_head=plain,
        )
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = (
            None  # as in stock, it has no num_classes
        )
    runner = train(cfg)
    log = table(cfg)
    assert len(log) == 6
    (loss,) = [m for m in runner.model.modules() if isinstance(m, plugin.DMFLoss)]
    assert loss.loss.fusion.step == 6
    assert log["gamma"].nunique() == 1  # decay_interval has not passed
    logged = [row["loss"] for row in scalars(cfg) if "loss" in row]
    np.testing.assert_allclose(log["total"], logged, rtol=1e-3)


@pytest.mark.slow
def test_accumulated_micro_batches_are_one_record(config):
    accumulated = {
        "optim_wrapper.accumulative_counts": 2,
        "model.decode_head.loss_decode.decay_end": 1.0,
    }
    cfg = config(**{"train_cfg.max_epochs": 2, **accumulated})
    runner = train(cfg)
    fusion = loss_of(runner).loss.fusion
    assert fusion.step == fusion.decay.planned_steps == 3  # six iterations
    log = table(cfg)
    assert log["step"].tolist() == [0, 1, 2]
    # 1 % is left at the end of the training, of three steps
    np.testing.assert_allclose(log["gamma"], 5 * 100 ** (-np.arange(3) / 3), rtol=1e-4)
    # the second step began in the first epoch
    assert log["epoch"].tolist() == [0, 1, 1]
    logged = np.array([row["loss"] for row in scalars(cfg) if "loss" in row])
    np.testing.assert_allclose(log["total"], logged.reshape(3, 2).mean(axis=1), rtol=1e-3)
    again = config(resume=True, **{"train_cfg.max_epochs": 3, **accumulated})
    train(again)
    assert table(again)["step"].tolist() == [0, 1, 2, 3, 4]  # the last iteration updates


@pytest.mark.slow
def test_mixed_precision_trains(config):
    class CpuAmp(OptimWrapper):  # mmengine's AmpOptimWrapper wants an accelerator
        @contextmanager
        def optim_context(self, model):
            with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
                yield

    OPTIM_WRAPPERS.register_module(module=CpuAmp, name="CpuAmp", force=True)
    fading = {"model.decode_head.loss_decode.decay_end": 0.5}
    amp = config("b", **{"train_cfg.max_epochs": 2, "optim_wrapper.type": "CpuAmp", **fading})
    runner = train(amp)
    assert table(amp)["gamma"].iloc[3] == pytest.approx(0.05)  # 1 % of 5 after three of six steps
    assert np.isfinite(table(amp)["total"]).all()
    assert loss_of(runner).loss.fusion.skipped == 0


@pytest.mark.slow
def test_what_would_train_wrongly_is_refused_before_it_begins(config):
    with pytest.raises(RuntimeError, match=r"num_classes=3, but the data set 2 classes"):
        train(config("a", **{"model.decode_head.num_classes": 3}))
    twice = config("b")
    twice.custom_hooks = [*twice.custom_hooks, dict(type="mmseg.DMFHook")]
    with pytest.raises(RuntimeError, match="DMFHook is registered twice"):
        train(twice)


@pytest.mark.slow
def test_three_classes_are_one_setting(phantoms, tmp_path, monkeypatch):
    options = {"size": (64, 64), "labels": "benign-malignant"}
    convert_dataset("busi", phantoms, "mmseg", output=tmp_path, **options)
    monkeypatch.setenv("DMF_TEST_DATA", str(tmp_path))
    ready = Config.fromfile(CONFIGS / "unet_dmf_busi-3class-128x128.py")
    classes = ready.model.decode_head.num_classes
    changes = {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}
    cfg = tiny_config(tmp_path / "work", **changes, **{"model.decode_head.num_classes": classes})
    train(cfg)
    assert "malignant" in log_text(cfg)  # the table per class
    assert any("lesion_dice" in row for row in scalars(cfg))


@pytest.mark.slow
def test_learned_weights_with_the_heads_rates_are_warned_of(config):
    changes = {"train_cfg.max_epochs": 1, "optim_wrapper.optimizer.weight_decay": 0.01}
    changes["model.decode_head.loss_decode.weighting"] = "uncertainty"
    keys = dict(head=dict(lr_mult=10.0))
    advice = dict(log_variance=dict(lr_mult=1.0, decay_mult=0.0))
    for work, more, warned in (("a", {}, True), ("b", advice, False)):
        cfg = config(work, **changes)
        cfg.train_dataloader.dataset.indices = 4
        cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={**keys, **more})
        train(cfg)
        text = "have 10 times the learning rate and weight decay 0.01"
        assert (text in log_text(cfg)) == warned


# ---------------------------------------------------------------- shipped tools and configs


@pytest.mark.slow
def test_tools_train_resume_and_test(data, tmp_path):
    shutil.copy(TINY, tmp_path / "mine.py")
    options = {"cwd": tmp_path, "DMF_TEST_DATA": str(data)}
    base = (TOOLS / "train.py", "mine.py", "--work-dir", "w")
    forked(*base, "--cfg-options", "train_cfg.max_epochs=1", **options)
    more = ("train_cfg.max_epochs=2", "train_cfg.val_interval=2", "custom_hooks.0.resume=new")
    changed = ("--cfg-options", *more, "model.decode_head.loss_decode.gamma0=7.0")
    forked(*base, "--resume", *changed, **options)
    assert len(pd.read_csv(tmp_path / "w/dmf_log.csv")) == 6
    best = next((tmp_path / "w").glob("best_*.pth"))
    test = (TOOLS / "test.py", "mine.py", best, "--work-dir", "t", "--tta")
    assert "lesion_dice:" in forked(*test, "--out", "predictions", **options)
    truth, predictions = data / "BUSI/ann_dir/test", tmp_path / "predictions"
    assert {p.name for p in predictions.iterdir()} == {p.name for p in truth.iterdir()}
    report = ["--labels", "lesion=1", "--out", str(tmp_path / "report")]
    result = CliRunner().invoke(app, ["evaluate", str(predictions), str(truth), *report])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report/summary.md").exists()


@pytest.mark.slow
def test_gloo_ranks_have_the_same_weights(data, tmp_path):
    """Four ranks in one go, and two that resume what the four began; nnU-Net is never imported."""
    (tmp_path / "mine.py").write_text(
        f"_base_ = {str(TINY)!r}\n"
        "custom_imports = dict(imports=['dmf_plugins.mmseg', 'dmf_plugins.mmseg.gloo'])\n"
        "model_wrapper_cfg = dict(\n"
        "    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)\n"
        "train_dataloader = dict(batch_size=2)\n"
    )
    script = tmp_path / "go.py"
    script.write_text(
        "import os, sys, torch\n"
        "from mmengine.config import Config\n"
        "from mmengine.runner import Runner\n"
        "cfg = Config.fromfile('mine.py'); cfg.work_dir = sys.argv[1]; cfg.launcher = 'pytorch'\n"
        "cfg.resume, cfg.load_from = len(sys.argv) > 2, sys.argv[2] if len(sys.argv) > 2 else None\n"
        "runner = Runner.from_cfg(cfg); runner.train()\n"
        "assert 'nnunetv2' not in sys.modules\n"
        "state = runner.model.module.decode_head.loss_decode.loss.fusion.state_dict_dmf()\n"
        "torch.save(state, f'{sys.argv[1]}/rank{os.environ[\"RANK\"]}.pth')\n"
    )

    def train(ranks: int, *arguments: str) -> dict:
        # what torchrun sets
        job = dict(WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        processes = [
            fork(
                script, *arguments, cwd=tmp_path, output=str(tmp_path / f"{arguments[0]}{rank}.txt"),
                RANK=str(rank), LOCAL_RANK=str(rank), **job,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        for rank, process in enumerate(processes):
            process.join()
            said = (tmp_path / f"{arguments[0]}{rank}.txt").read_text()
            assert process.exitcode == 0, said[-3000:]
        states = [
            torch.load(tmp_path / arguments[0] / f"rank{r}.pth", weights_only=True)
            for r in range(ranks)
        ]
        for state in states[1:]:
            assert all(torch.equal(v, state[k]) for k, v in states[0].items() if torch.is_tensor(v))
        assert states[0]["weights"].unique().numel() > 1
        return states[0]

    whole = train(4, "whole")
    assert whole["step"] == 4  # an epoch is one step: 12 images in whole batches of two
    resumed = train(2, "resumed", "whole/epoch_2.pth")
    assert resumed["step"] == 2 + 2 * 3
    begun = torch.load(tmp_path / "whole" / "epoch_2.pth", weights_only=True)["dmf"]
    history = begun["decode_head.loss_decode"]["history"]
    assert torch.equal(resumed["history"][: len(history) - 6], history[6:])
