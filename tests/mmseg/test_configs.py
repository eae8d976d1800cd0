"""The configs that are shipped."""

from __future__ import annotations

import pytest
import torch

from .support import CONFIGS, Config

# isort: split
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import dmf_plugins.mmseg  # noqa: F401  registers


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.py")))
def test_every_config_builds_and_computes_a_loss(name):
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.custom_hooks == [dict(type="DMFHook"), dict(type="EpochSeedHook")]
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
            cfg = Config.fromfile(CONFIGS / "unet_dmf_busi-128x128.py")
            prefix = "model.decode_head.loss_decode"
            cfg.merge_from_dict({f"{prefix}.weighting": rule, f"{prefix}.auxiliary": auxiliary})
            loss = MODELS.build(cfg.model.decode_head.loss_decode)
            assert loss.loss.fusion.config.weighting == rule
            assert (loss.loss.auxiliary is None) == (auxiliary is None)


def test_copied_configs_work_by_relative_path(tmp_path):
    from typer.testing import CliRunner

    from dmf_plugins.cli import app

    assert CliRunner().invoke(app, ["copy-configs", str(tmp_path / "dmf")]).exit_code == 0
    (tmp_path / "mine.py").write_text("_base_ = './dmf/unet_fixed_busi-128x128.py'\n")
    assert Config.fromfile(tmp_path / "mine.py").model.decode_head.loss_decode.weighting == "fixed"
