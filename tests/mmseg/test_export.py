"""``dmf export`` of a training with MMSegmentation."""

from __future__ import annotations

import os

import pytest
import torch

from dmf_plugins.errors import DataError, DMFError, UsageError

from ..support.forked import forked
from .support import CONFIGS, Config

# isort: split
from mmseg.apis import inference_model, init_model

import dmf_plugins.mmseg as plugin
from dmf_plugins.mmseg.export import export_mmseg, plain_config

STOCK = """
import sys, torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

config, checkpoint, image, folder = sys.argv[1:]
model = init_model(config, checkpoint, device="cpu")
torch.save(inference_model(model, image).seg_logits.data, f"{folder}/logits.pt")
cfg = Config.fromfile(config)
cfg.load_from, cfg.work_dir = checkpoint, folder
assert Runner.from_cfg(cfg).test()["mDice"] >= 0
"""


@pytest.mark.slow
def test_an_exported_model_predicts_the_same_without_the_plugin(trained, data, tmp_path):
    exported = export_mmseg(trained, tmp_path / "exported")
    with pytest.raises(UsageError, match="--overwrite"):
        export_mmseg(trained, exported)
    text = Config.fromfile(exported / "config.py").pretty_text.lower()
    for folder in (tmp_path, data):
        text = text.replace(str(folder).lower(), "")
    assert "dmf" not in text
    (tmp_path / "block" / "dmf_plugins").mkdir(parents=True)
    (tmp_path / "block" / "dmf_plugins" / "__init__.py").write_text("raise ImportError")
    image = next((data / "BUSI/img_dir/test").iterdir())
    files = (exported / "config.py", exported / "model.pth", image, tmp_path)
    forked("-c", STOCK, *files, cwd=tmp_path, PYTHONPATH=str(tmp_path / "block"))
    best = next(trained.glob("best_*.pth"))
    model = init_model(str(next(trained.glob("*.py"))), str(best), device="cpu")
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(inference_model(model, str(image)).seg_logits.data, logits)


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
    cfg = Config(dict(test_pipeline=[dict(type="BilateralFilter")]))
    with pytest.raises(UsageError, match="BilateralFilter"):
        plain_config(cfg, {})
    with pytest.raises(DataError, match=r"no single config.*--config"):
        export_mmseg(tmp_path, tmp_path / "out")
    (tmp_path / "c.py").write_text("a = 1")
    with pytest.raises(DataError, match=r"--checkpoint"):
        export_mmseg(tmp_path, tmp_path / "out")
    (tmp_path / "best_x.pth").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"best_x\.pth is damaged"):
        export_mmseg(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


MIXED = """
from mmseg.models.losses import LovaszLoss
from dmf_plugins.mmseg import BreastUltrasoundDataset, DMFHook, DMFLoss, DMFMetric

dmf_loss = dict(type="DMFLoss")
dataset_type = "BreastUltrasoundDataset"
loaders = [dict(dataset=dict(type=BreastUltrasoundDataset))]
train_pipeline = [dict(type="LoadImageFromFile")]
model = dict(
    decode_head=dict(
        loss_decode=[
            dict(type="mmseg.DMFLoss", loss_name="loss_a", loss_weight=0.4),
            dict(type=LovaszLoss, reduction="none"),
        ]
    ),
    auxiliary_head=dict(out_channels=1, loss_decode=dict(type=DMFLoss)),
)
repeated = dict(type=BreastUltrasoundDataset, labels="lesion")
train_dataloader = dict(dataset=dict(type="RepeatDataset", dataset=repeated))
val_evaluator = [dict(type="mmseg.DMFMetric"), dict(type=DMFMetric, prefix="x")]
custom_imports = dict(imports=["dmf_plugins.mmseg", "json"])
custom_hooks = [
    dict(type="mmseg.DMFHook"),
    dict(type=DMFHook),
    dict(type="EpochSeedHook"),
    dict(type="EarlyStoppingHook", monitor="x/lesion_dice"),
    dict(type="EarlyStoppingHook", monitor="false_lesions", rule="less"),
]
default_hooks = dict(
    dmf=dict(type="DMFHook"),
    checkpoint=dict(type="CheckpointHook", save_best=["paper_dice", "lesion_iou"]),
)
"""


def test_nothing_of_ours_is_left_however_it_was_written(tmp_path):
    """By name, with a scope, as a class, and as the path that mmengine makes of a class."""
    (tmp_path / "lazy.py").write_text(MIXED)
    written = Config.fromfile(tmp_path / "lazy.py")
    written.dump(str(tmp_path / "dumped.py"))
    for name in ("lazy.py", "dumped.py"):
        cfg = Config.fromfile(tmp_path / name)
        plain_config(cfg, dict(classes=("background", "lesion"))).dump(str(tmp_path / "plain.py"))
        text = (tmp_path / "plain.py").read_text().lower()
        for word in ("dmf", "breast", "lesion_", "paper_", "epochseed"):
            assert word not in text, text
        plain = Config.fromfile(tmp_path / "plain.py")
        first, lovasz = plain.model.decode_head.loss_decode
        assert first == dict(
            type="CrossEntropyLoss", use_sigmoid=False, loss_name="loss_a", loss_weight=0.4
        )
        assert lovasz.type.endswith("LovaszLoss")
        assert plain.model.auxiliary_head.loss_decode.use_sigmoid
        data = plain.train_dataloader.dataset.dataset
        assert data.metainfo.classes == ("background", "lesion")
        assert plain.default_hooks.checkpoint.save_best == ["mDice"]
        assert plain.custom_hooks == [
            dict(type="EarlyStoppingHook", monitor="x/mDice"),
            dict(type="EarlyStoppingHook", monitor="mDice", rule="greater"),
        ]
        assert plain.custom_imports.imports == ["json"]
        assert plain.train_pipeline


def test_our_metric_beside_stocks_becomes_a_part_of_it():
    evaluators = [dict(type="IoUMetric"), dict(type="DMFMetric")]
    cfg = plain_config(Config(dict(val_evaluator=evaluators)), {})
    assert cfg.val_evaluator == [dict(type="IoUMetric", iou_metrics=["mIoU", "mDice"])]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_shipped_config_can_be_exported(path):
    text = plain_config(Config.fromfile(path), {}).pretty_text
    assert not any(name in text for name in (*plugin.__all__, "dmf_", "lesion_dice"))


@pytest.mark.slow
def test_a_result_that_needs_this_package_is_not_written(trained, tmp_path):
    cfg = Config.fromfile(next(trained.glob("*.py")))
    # a module of ours under a name that nobody could know
    (tmp_path / "wrapper.py").write_text("import dmf_plugins.mmseg\n")
    cfg.custom_imports = dict(imports=["wrapper"])
    cfg.dump(str(tmp_path / "c.py"))
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.syspath_prepend(tmp_path)
        with pytest.raises(DMFError, match=r"(?s)nothing was written.*wrapper"):
            export_mmseg(trained, tmp_path / "out", config=tmp_path / "c.py")
    assert not (tmp_path / "out").exists()
