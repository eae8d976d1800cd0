"""MMSegmentation with real Runners: the loss contract, the hook, the configs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from dmf_plugins.data import convert_dataset
from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.metrics import segmentation_metrics
from dmf_plugins.paths import bundled

pytest.importorskip("mmseg.models", reason="MMSegmentation does not work", exc_type=ImportError)

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmseg.structures import SegDataSample

import dmf_plugins
import dmf_plugins.mmseg as plugin
from dmf_plugins.mmseg.hook import TrackedLoss

from .conftest import free_port

TINY = Path(__file__).parent / "mmseg" / "tiny.py"
TOOLS = Path(__import__("mmseg").__file__).parent / ".mim" / "tools"


@pytest.fixture(scope="module")
def data(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmdata")
    convert_dataset("busi", phantoms, "mmseg", output=folder, size=(64, 64))
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Factory of the tiny config with changes merged in."""
    monkeypatch.setenv("DMF_CONFIGS", str(bundled("mmseg_configs")))
    monkeypatch.setenv("DMF_TEST_DATA", str(data))

    def make(work: str = "work", **changes):
        cfg = Config.fromfile(TINY)
        cfg.work_dir = str(tmp_path / work)
        cfg.experiment_name = f"{tmp_path.name}_{uuid.uuid4()}"  # visualizers are kept by name
        cfg.visualizer.name = cfg.experiment_name
        cfg.merge_from_dict(changes)
        return cfg

    return make


def train(cfg: Config) -> Runner:
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def loss_of(runner: Runner):
    return runner.model.decode_head.loss_decode


def table(cfg: Config, name: str = "dmf_log.csv") -> pd.DataFrame:
    return pd.read_csv(Path(cfg.work_dir) / name)


def scalars(cfg: Config) -> list[dict]:
    path = next(Path(cfg.work_dir).glob("*/vis_data/scalars.json"))
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- the loss contract


def test_everything_is_registered():
    assert MODELS.get("DMFLoss") is plugin.DMFLoss
    assert DATASETS.get("BreastUltrasoundDataset") is plugin.BreastUltrasoundDataset
    assert TRANSFORMS.get("BilateralFilter") is plugin.BilateralFilter
    assert METRICS.get("DMFMetric") is plugin.DMFMetric


def test_the_loss_is_the_plain_one_with_the_heads_ignore_index():
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    label = torch.randint(0, 3, (2, 8, 8))
    label[:, :2] = 255
    loss = MODELS.build(dict(type="DMFLoss", loss_weight=0.4))
    assert loss.loss_name.startswith("loss_")
    total = loss(logits, label, weight=None, ignore_index=255)
    torch.testing.assert_close(total, 0.4 * dmf_plugins.DMFLoss(ignore_index=255)(logits, label))
    label[:, 2] = 7  # another head may ignore another label
    loss(logits, label % 248, weight=None, ignore_index=7)
    sampled = torch.ones(2, 8, 8)
    sampled[:, :4] = 0
    label = label.clamp_max(2)
    masked = torch.where(sampled.bool(), label, 255)
    torch.testing.assert_close(
        loss(logits, label, weight=sampled, ignore_index=255),
        0.4 * dmf_plugins.DMFLoss(ignore_index=255)(logits, masked),
    )


def test_one_channel_logits_are_not_inverted():
    label = torch.randint(0, 2, (2, 8, 8))
    logits = 60.0 * label[:, None] - 30
    loss = MODELS.build(dict(type="DMFLoss", auxiliary=None))
    assert loss(logits, label).item() < 1e-4
    assert loss(-logits, label).item() > 1
    label[:, 0] = 255
    assert loss(logits, label).item() < 1e-4


def test_terms_may_come_from_mmsegs_registry():
    logits = torch.randn(2, 3, 8, 8)
    label = torch.randint(0, 3, (2, 8, 8))
    label[:, 0] = 255
    spec = [
        "ce",
        dict(type="CrossEntropyLoss", avg_non_ignore=True),
        dict(type="LovaszLoss", reduction="none"),
    ]
    loss = MODELS.build(dict(type="DMFLoss", losses=spec, auxiliary="tversky"))
    assert loss.dmf.names == ("ce", "CrossEntropyLoss", "LovaszLoss")
    loss(logits, label, ignore_index=255)
    ours, theirs, lovasz = loss.dmf.last["terms"]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, label, ignore_index=255))
    assert lovasz > 0
    with pytest.raises(KeyError, match="did you mean 'LovaszLoss'"):
        MODELS.build(dict(type="DMFLoss", losses=["LovazsLoss"]))


def test_what_a_merged_base_config_leaves_behind():
    loss = MODELS.build(dict(type="DMFLoss", use_sigmoid=False, loss_weight=1.0))
    assert loss.dmf.mode == "auto"
    assert MODELS.build(dict(type="DMFLoss", use_sigmoid=True)).dmf.mode == "sigmoid"
    with pytest.raises(TypeError, match=r"class_weight.*_delete_=True"):
        MODELS.build(dict(type="DMFLoss", use_sigmoid=False, class_weight=[1, 2]))
    with pytest.raises(ValueError, match="loss_name"):
        MODELS.build(dict(type="DMFLoss", loss_name="dmf"))
    with pytest.raises(NotImplementedError, match="reduction_override"):
        loss(torch.randn(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), reduction_override="none")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits(dtype):
    loss = MODELS.build(dict(type="DMFLoss"))
    total = loss(torch.randn(2, 2, 8, 8).to(dtype), torch.randint(0, 2, (2, 8, 8)))
    assert total.dtype == torch.float32
    assert total.isfinite()


def test_head_with_a_list_or_a_dict_of_losses():
    label = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 2, (1, 16, 16))))] * 2
    head = dict(
        type="FCNHead", in_channels=4, channels=4, num_convs=0, concat_input=False, num_classes=2
    )
    features = [torch.randn(2, 4, 16, 16)]
    single = MODELS.build(dict(**head, loss_decode=dict(type="DMFLoss")))
    assert set(single.loss(features, label, {})) == {"loss_dmf", "acc_seg"}
    several = MODELS.build(
        dict(
            **head,
            loss_decode=[dict(type="DMFLoss"), dict(type="CrossEntropyLoss", loss_weight=0.1)],
        )
    )
    assert set(several.loss(features, label, {})) == {"loss_dmf", "loss_ce", "acc_seg"}


def test_no_scalar_passes_for_a_loss(tmp_path):
    def edge_loss(logits, target):
        return logits.abs().mean()

    loss = plugin.DMFLoss(losses=["ce", edge_loss], auxiliary=None)
    loss(torch.randn(1, 2, 4, 4), torch.zeros(1, 4, 4).long())
    tracked = TrackedLoss("decode_head.loss_decode", loss, tmp_path, only=False)
    tracked.remember()
    names = tracked.scalars(tracked.flush()[0])
    assert "dmf/decode_head/value_edge_term" in names
    assert not any("loss" in name for name in names)


# ---------------------------------------------------------------- data, transform, metric


def test_dataset_reads_what_the_converter_wrote(data):
    dataset = DATASETS.build(
        dict(
            type="BreastUltrasoundDataset",
            data_root=str(data / "BUSI"),
            data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
            pipeline=[dict(type="LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")],
        )
    )
    assert dataset.metainfo["classes"] == ("background", "lesion")
    assert not dataset.metainfo["reduce_zero_label"]
    assert len(dataset) == len(list((data / "BUSI/img_dir/train").iterdir()))
    assert set(np.unique(dataset[0]["gt_seg_map"])) == {0, 1}
    three = plugin.BreastUltrasoundDataset(
        labels="benign-malignant", data_root=str(data / "BUSI"), lazy_init=True,
        data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
    )  # fmt: skip
    assert three.metainfo["classes"][2] == "malignant"
    with pytest.raises(ValueError, match="labels"):
        plugin.BreastUltrasoundDataset(labels="cyst")


def test_transform_filters_as_the_converter_does(phantoms, data):
    convert_dataset("busi", phantoms, "mmseg", output=data / "native")
    source = phantoms / "benign/benign (1).png"
    load = TRANSFORMS.build(dict(type="LoadImageFromFile"))
    step = TRANSFORMS.build(dict(type="BilateralFilter"))
    result = step(load(dict(img_path=str(source))))
    converted = next((data / "native/BUSI/img_dir").glob("*/benign_001.png"))
    expected = load(dict(img_path=str(converted)))["img"]
    np.testing.assert_array_equal(result["img"], expected)
    with pytest.raises(TypeError, match="right after LoadImageFromFile"):
        step(dict(img=np.zeros((4, 4), np.float32)))


def test_metric_is_segmentation_metrics_in_percent():
    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, 2, (2, 5, 9, 9))
    target[0] = pred[0] = 0
    metric = METRICS.build(dict(type="DMFMetric"))
    metric.dataset_meta = dict(classes=("background", "lesion"))
    for p, t in zip(pred, target, strict=True):
        sample = {
            k: dict(data=torch.tensor(v)[None]) for k, v in (("pred_sem_seg", p), ("gt_sem_seg", t))
        }
        metric.process({}, [sample])
    scores = metric.evaluate(5)
    lesion = segmentation_metrics(pred, target, 2, aggregate="image").lesion["dice"]
    paper = segmentation_metrics(pred, target, 2).paper["iou"]
    assert scores["lesion_dice"] == pytest.approx(100 * lesion, abs=0.01)
    assert scores["paper_iou"] == pytest.approx(100 * paper, abs=0.01)


# ---------------------------------------------------------------- Runner


@pytest.mark.slow
def test_training_logs_saves_and_evaluates(config):
    cfg = config(**{"default_hooks.logger.interval": 2})
    runner = train(cfg)
    log = table(cfg)
    assert log["step"].tolist() == list(range(12))
    assert log["epoch"].tolist() == [epoch for epoch in range(4) for _ in range(3)]
    assert log["weight_ce"].nunique() > 5
    assert (Path(cfg.work_dir) / "dmf_dynamics.png").stat().st_size > 10_000
    logged = scalars(cfg)
    keys = {key for row in logged for key in row}
    assert {"dmf/weight_ce", "dmf/value_dice", "dmf/gamma", "dmf/auxiliary", "lesion_dice"} <= keys
    assert not any("loss" in key for key in keys if "dmf/" in key)
    steps = [row for row in logged if "dmf/weight_ce" in row]
    log = log[1::3]  # the second of the three iterations of each epoch
    np.testing.assert_allclose([r["dmf/weight_ce"] for r in steps], log["weight_ce"], rtol=1e-4)
    # nothing but the loss itself is summed into the objective
    np.testing.assert_allclose([r["loss"] for r in steps], log["total"], rtol=1e-3)
    checkpoint = torch.load(Path(cfg.work_dir) / "epoch_4.pth", weights_only=True)
    assert checkpoint["dmf"]["decode_head.loss_decode"]["step"] == 12
    assert not any("dmf" in key or "loss" in key for key in checkpoint["state_dict"])
    assert loss_of(runner).dmf.fusion.step == 12


@pytest.mark.slow
def test_resume_after_a_kill_equals_an_uninterrupted_run(config, tmp_path):
    """Four epochs in one go equal kill -9 in the midst of the third, and --resume."""
    code = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from mmengine.config import Config\n"
        "from mmengine.hooks import Hook\n"
        "from mmengine.registry import HOOKS\n"
        "from mmengine.runner import Runner\n"
        "class Reseed(Hook):\n"  # so that all runs flip the same images
        "    def before_train_epoch(self, runner): np.random.seed(runner.epoch)\n"
        "HOOKS.register_module(module=Reseed, force=True)\n"
        "class Kill(Hook):\n"
        "    def after_train_iter(self, runner, **kwargs):\n"
        "        if runner.iter == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "runner = Runner.from_cfg(Config.fromfile(sys.argv[1]))\n"
        "runner.register_hook(Kill())\n"
        "runner.train()\n"
    )

    def run(cfg: Config, kill_at: int = -1) -> int:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type="Reseed")]
        path = tmp_path / f"{cfg.experiment_name}.py"
        cfg.dump(str(path))
        command = [sys.executable, "-c", code, path, str(kill_at)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    whole, first = config("whole"), config("resumed")
    assert run(whole) == 0
    assert run(first, kill_at=7) == -9
    assert not (Path(first.work_dir) / "epoch_3.pth").exists()
    with (Path(first.work_dir) / "dmf_log.csv").open("a") as stream:
        stream.write("2,6,0.1\n")  # a line cut short
    second = config("resumed", resume=True)
    assert run(second) == 0
    pd.testing.assert_frame_equal(table(second), table(whole))
    a, b = (
        torch.load(Path(c.work_dir) / "epoch_4.pth", weights_only=True) for c in (whole, second)
    )
    for key, value in a["dmf"]["decode_head.loss_decode"].items():
        other = b["dmf"]["decode_head.loss_decode"][key]
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())


@pytest.mark.slow
def test_learned_weights_are_in_the_optimizer_the_log_and_the_checkpoint(config):
    loss = "model.decode_head.loss_decode"
    whole = config("whole", **{f"{loss}.weighting": "uncertainty", "train_cfg.max_epochs": 2})
    runner = train(whole)
    learned = loss_of(runner).dmf.fusion.rule.log_variance.detach()
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
    again = loss_of(train(resumed)).dmf.fusion.rule.log_variance.detach()
    assert torch.equal(again, checkpoint["dmf"]["decode_head.loss_decode"]["log_variance"])


@pytest.mark.slow
def test_a_checkpoint_that_cannot_continue_is_refused(config):
    cfg = config(**{"train_cfg.max_epochs": 1})
    train(cfg)
    path = Path(cfg.work_dir) / "epoch_1.pth"
    changes = {"resume": True, "load_from": str(path)}
    with pytest.raises(RuntimeError, match="memory_size=9"):
        train(config("b", **changes, **{"model.decode_head.loss_decode.memory_size": 9}))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["dmf"]
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match=r"no DMF memory.*load_from without resume"):
        train(config("c", **changes))
    fresh = Runner.from_cfg(config("d", load_from=str(path)))
    fresh.load_or_resume()  # network weights alone are welcome
    assert loss_of(fresh).dmf.fusion.step == 0


@pytest.mark.slow
def test_a_checkpoint_loads_into_the_plain_framework(config):
    cfg = config(**{"train_cfg.max_epochs": 1})
    train(cfg)
    code = (
        "import sys, torch; from mmengine.config import Config; from mmseg.registry import MODELS;"
        "from mmseg.utils import register_all_modules; register_all_modules();"
        "cfg = Config.fromfile(sys.argv[1], import_custom_modules=False).model;"
        "cfg.decode_head.loss_decode = dict(type='CrossEntropyLoss');"
        "model = MODELS.build(cfg);"
        "state = torch.load(sys.argv[2], weights_only=False)['state_dict'];"
        "model.load_state_dict(state, strict=True);"
        "assert not any(m.startswith('dmf_plugins') for m in sys.modules)"
    )
    path = Path(cfg.work_dir) / "epoch_1.pth"
    subprocess.run([sys.executable, "-c", code, str(TINY), str(path)], check=True)


@pytest.mark.slow
def test_an_exported_model_predicts_the_same_without_the_plugin(config, data, tmp_path):
    from dmf_plugins.mmseg.export import export_mmseg

    cfg = config(**{"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1})
    cfg.model.decode_head.loss_decode.weighting = "uncertainty"  # has a parameter in the checkpoint
    train(cfg)
    dumped = next(Path(cfg.work_dir).glob("*.py"))  # by mmengine
    exported = export_mmseg(Path(cfg.work_dir), tmp_path / "exported")
    with pytest.raises(UsageError, match="--overwrite"):
        export_mmseg(Path(cfg.work_dir), exported)
    best = next(Path(cfg.work_dir).glob("best_*.pth"))
    image = next((data / "BUSI/img_dir/test").iterdir())
    (tmp_path / "block" / "dmf_plugins").mkdir(parents=True)
    (tmp_path / "block" / "dmf_plugins" / "__init__.py").write_text("raise ImportError")
    code = (
        "import sys, torch\n"
        "from mmseg.apis import inference_model, init_model\n"
        "model = init_model(sys.argv[1], sys.argv[2], device='cpu')\n"
        "torch.save(inference_model(model, sys.argv[3]).seg_logits.data, sys.argv[4])\n"
    )
    logits = []
    runs = (
        (dumped, best),
        (exported / "config.py", exported / "model.pth"),
    )
    for number, (config_path, checkpoint) in enumerate(runs):
        out = tmp_path / f"{number}.pt"
        environment = {**os.environ, **({"PYTHONPATH": str(tmp_path / "block")} if number else {})}
        subprocess.run(
            [sys.executable, "-c", code, config_path, checkpoint, image, out],
            env=environment, cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
        logits.append(torch.load(out, weights_only=True))
    assert torch.equal(*logits)
    # and the config still trains and tests, with stock parts
    stock = Config.fromfile(exported / "config.py")
    assert "dmf" not in stock.pretty_text.lower().replace(str(tmp_path).lower(), "").replace(
        str(data).lower(), ""
    )
    test = (
        "import sys; from mmengine.config import Config; from mmengine.runner import Runner\n"
        "cfg = Config.fromfile(sys.argv[1]); cfg.load_from, cfg.work_dir = sys.argv[2:]\n"
        "assert Runner.from_cfg(cfg).test()['mDice'] >= 0\n"
    )
    subprocess.run(
        [sys.executable, "-c", test, exported / "config.py", exported / "model.pth", tmp_path / "t"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "block")}, cwd=tmp_path, check=True,
        capture_output=True,
    )  # fmt: skip


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
    from dmf_plugins.mmseg.export import export_mmseg, plain_config

    cfg = Config(dict(test_pipeline=[dict(type="BilateralFilter")]))
    with pytest.raises(UsageError, match="BilateralFilter"):
        plain_config(cfg, {})
    with pytest.raises(DataError, match=r"no single config.*--config"):
        export_mmseg(tmp_path, tmp_path / "out")
    (tmp_path / "c.py").write_text("a = 1")
    with pytest.raises(DataError, match=r"--checkpoint"):
        export_mmseg(tmp_path, tmp_path / "out")
    (tmp_path / "best_x.pth").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"best_x\.pth is not a readable checkpoint"):
        export_mmseg(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_never_a_silent_cold_start(config):
    cfg = config(**{"train_cfg.max_epochs": 1})
    train(cfg)
    path = Path(cfg.work_dir) / "epoch_1.pth"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RuntimeError, match=r"PytorchStreamReader|central directory|damaged"):
        train(config("work", resume=True))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(Exception, match=r"[Ii]nvalid|pickle|load"):
        train(config("work", resume=True))


def test_the_mmseg_side_never_imports_nnunet():
    code = "import sys, dmf_plugins.mmseg; assert 'nnunetv2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


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
    assert runner.model.auxiliary_head.loss_decode.dmf.names == ("ce", "dice")
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
def test_ema_does_not_touch_the_memory(config, update_buffers):
    changes = {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 1}
    plain = config("plain", **changes)
    a = loss_of(train(plain)).dmf.fusion.state_dict_dmf()
    hook = dict(type="EMAHook", update_buffers=update_buffers)
    cfg = config("ema", **changes)
    cfg.custom_hooks = [*cfg.custom_hooks, hook]
    runner = train(cfg)
    b = loss_of(runner).dmf.fusion.state_dict_dmf()
    assert all(torch.equal(v, b[k]) for k, v in a.items() if torch.is_tensor(v))
    saved = torch.load(Path(cfg.work_dir) / "epoch_2.pth", weights_only=True)
    assert torch.equal(saved["dmf"]["decode_head.loss_decode"]["weights"], a["weights"])
    resumed = config("ema", resume=True, **{**changes, "train_cfg.max_epochs": 3})
    resumed.custom_hooks = cfg.custom_hooks
    assert loss_of(train(resumed)).dmf.fusion.step == 9


@pytest.mark.slow
def test_gradient_accumulation_records_every_micro_batch_and_amp_trains(config):
    cfg = config("a", **{"train_cfg.max_epochs": 1, "optim_wrapper.accumulative_counts": 3})
    assert loss_of(train(cfg)).dmf.fusion.step == 3

    class CpuAmp(OptimWrapper):  # mmengine's AmpOptimWrapper wants an accelerator
        @contextmanager
        def optim_context(self, model):
            with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
                yield

    OPTIM_WRAPPERS.register_module(module=CpuAmp, name="CpuAmp", force=True)
    amp = config("b", **{"train_cfg.max_epochs": 2, "optim_wrapper.type": "CpuAmp"})
    runner = train(amp)
    assert np.isfinite(table(amp)["total"]).all()
    assert loss_of(runner).dmf.fusion.skipped == 0


# ---------------------------------------------------------------- shipped tools and configs


def run(*arguments: object, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "DMF_CONFIGS": str(bundled("mmseg_configs")), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


@pytest.mark.slow
def test_tools_train_resume_and_test(data, tmp_path):
    shutil.copy(TINY, tmp_path / "mine.py")
    options = {"cwd": tmp_path, "DMF_TEST_DATA": str(data)}
    run(
        TOOLS / "train.py",
        "mine.py",
        "--work-dir",
        "w",
        "--cfg-options",
        "train_cfg.max_epochs=1",
        **options,
    )
    run(
        TOOLS / "train.py", "mine.py", "--work-dir", "w", "--resume", "--cfg-options",
        "train_cfg.max_epochs=2", "train_cfg.val_interval=2", **options,
    )  # fmt: skip
    assert len(pd.read_csv(tmp_path / "w/dmf_log.csv")) == 6
    output = run(TOOLS / "test.py", "mine.py", "w/epoch_2.pth", "--work-dir", "t", **options)
    assert "lesion_dice:" in output


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_gloo_ranks_have_the_same_weights(world, data, tmp_path):
    """In one go, and when two ranks join by resuming what ``world`` ranks began."""
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
        "state = runner.model.module.decode_head.loss_decode.dmf.fusion.state_dict_dmf()\n"
        "torch.save(state, f'{sys.argv[1]}/rank{os.environ[\"RANK\"]}.pth')\n"
    )

    def train(ranks: int, *arguments: str) -> dict:
        run(
            *("-m", "torch.distributed.run", "--nproc_per_node", ranks),
            *("--master_port", free_port(), script, *arguments),
            cwd=tmp_path, DMF_TEST_DATA=str(data), OMP_NUM_THREADS="1",
        )  # fmt: skip
        states = [
            torch.load(tmp_path / arguments[0] / f"rank{r}.pth", weights_only=True)
            for r in range(ranks)
        ]
        for state in states[1:]:
            assert all(torch.equal(v, state[k]) for k, v in states[0].items() if torch.is_tensor(v))
        assert states[0]["weights"].unique().numel() > 1
        return states[0]

    epoch = 12 // (2 * world)  # iterations: 12 images in whole batches of two over the ranks
    whole = train(world, "whole")
    assert whole["step"] == 4 * epoch
    resumed = train(2, "resumed", "whole/epoch_2.pth")
    steps = 2 * epoch + 2 * 3
    assert resumed["step"] == steps
    begun = torch.load(tmp_path / "whole" / "epoch_2.pth", weights_only=True)["dmf"]
    history = begun["decode_head.loss_decode"]["history"]
    assert torch.equal(resumed["history"][: len(history) - 6], history[6:])


@pytest.mark.parametrize("name", sorted(p.name for p in bundled("mmseg_configs").glob("*.py")))
def test_every_config_builds_and_computes_a_loss(name):
    cfg = Config.fromfile(bundled("mmseg_configs") / name)
    assert cfg.custom_hooks == [dict(type="DMFHook")]
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.randint(0, 2, (1, 128, 128))),
        metainfo=dict(img_shape=(128, 128), ori_shape=(128, 128), pad_shape=(128, 128)),
    )
    batch = dict(inputs=[torch.randint(0, 255, (3, 128, 128), dtype=torch.uint8)] * 2,
                 data_samples=[sample, sample.clone()])  # fmt: skip
    batch = model.data_preprocessor(batch, training=True)
    losses = model.loss(**batch)
    assert "decode.loss_dmf" in losses
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    model.eval()
    with torch.no_grad():
        batch = model.data_preprocessor(
            dict(inputs=[torch.zeros(3, 128, 128, dtype=torch.uint8)], data_samples=[sample])
        )
        assert model.predict(**batch)[0].pred_sem_seg.data.shape == (1, 128, 128)


def test_the_grid_is_an_override_of_one_file():
    for rule in ("variance", "mad", "bayesian", "fixed"):
        for auxiliary in ("cb_dice", "tversky", "focal", None):
            cfg = Config.fromfile(bundled("mmseg_configs") / "unet_dmf_busi-128x128.py")
            prefix = "model.decode_head.loss_decode"
            cfg.merge_from_dict({f"{prefix}.weighting": rule, f"{prefix}.auxiliary": auxiliary})
            loss = MODELS.build(cfg.model.decode_head.loss_decode)
            assert loss.dmf.fusion.config.weighting == rule
            assert (loss.dmf.auxiliary is None) == (auxiliary is None)


def test_copied_configs_work_by_relative_path(tmp_path):
    from typer.testing import CliRunner

    from dmf_plugins.cli import app

    assert CliRunner().invoke(app, ["copy-configs", str(tmp_path / "dmf")]).exit_code == 0
    (tmp_path / "mine.py").write_text("_base_ = './dmf/unet_fixed_busi-128x128.py'\n")
    assert Config.fromfile(tmp_path / "mine.py").model.decode_head.loss_decode.weighting == "fixed"
