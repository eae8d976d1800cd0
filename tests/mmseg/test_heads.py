"""Every head of mmseg that works with its own loss works with DMFLoss: built, trained two steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg.models", reason="MMSegmentation does not work", exc_type=ImportError)

from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models import decode_heads
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import dmf_plugins.mmseg

CHANNELS = (8, 8, 16, 16)
SIZES = (16, 8, 8, 8)
BN = dict(type="BN")
CE, DMF = dict(type="CrossEntropyLoss"), dict(type="DMFLoss", memory_size=4, min_history=2)
ALL = dict(in_channels=list(CHANNELS), in_index=[0, 1, 2, 3])
ONE = dict(in_channels=16, in_index=3)
TRANSFORMER = dict(in_channels=16, in_index=3, embed_dims=16, num_heads=2, num_layers=1)

KNET = dict(
    num_stages=3,
    kernel_update_head=[
        dict(
            type="KernelUpdateHead", num_classes=3, num_heads=2, feedforward_channels=16,
            in_channels=8, out_channels=8, conv_kernel_size=1,
            feat_transform_cfg=dict(conv_cfg=dict(type="Conv2d"), act_cfg=None),
            kernel_updator_cfg=dict(
                type="KernelUpdator", in_channels=8, feat_channels=8, out_channels=8,
                act_cfg=dict(type="ReLU"), norm_cfg=dict(type="LN"),
            ),
        )
        for _ in range(3)
    ],
    kernel_generate_head=dict(
        type="FCNHead", **ONE, channels=8, num_convs=1, num_classes=3, norm_cfg=BN,
    ),
)  # fmt: skip

# what each head needs beside channels, classes and loss; None: no loss per pixel (see docs/mmseg.md)
HEADS: dict[str, dict[str, Any] | None] = {
    "ANNHead": dict(in_channels=[16, 16], in_index=[2, 3], project_channels=8),
    "APCHead": ONE,
    "ASPPHead": ONE,
    "CCHead": ONE,
    "DAHead": dict(**ONE, pam_channels=4),
    "DDRHead": dict(in_channels=16),
    "DMHead": ONE,
    "DNLHead": ONE,
    "DPTHead": dict(
        in_channels=(16,) * 4,
        in_index=[0, 1, 2, 3],
        input_transform="multiple_select",
        embed_dims=16,
        post_process_channels=[8, 8, 16, 16],
    ),
    "DepthwiseSeparableASPPHead": dict(**ONE, c1_in_channels=8, c1_channels=4),
    "DepthwiseSeparableFCNHead": dict(**ONE, channels=16, norm_cfg=BN, num_convs=2),
    "EMAHead": dict(**ONE, ema_channels=16, num_bases=4, num_stages=2),
    "EncHead": dict(in_channels=[8, 16, 16], in_index=(1, 2, 3), num_codes=4),
    "FCNHead": ONE,
    "FPNHead": dict(**ALL, feature_strides=[4, 8, 8, 8]),
    "GCHead": ONE,
    "ISAHead": dict(**ONE, isa_channels=8, down_factor=(4, 4)),
    "IterativeDecodeHead": KNET,
    "LRASPPHead": dict(
        in_channels=(8, 8, 16),
        in_index=(0, 1, 2),
        branch_channels=(8, 16),
        input_transform="multiple_select",
    ),
    "LightHamHead": dict(
        in_channels=[8, 16, 16],
        in_index=[1, 2, 3],
        ham_channels=16,
        ham_kwargs=dict(MD_S=1, MD_R=4, train_steps=2, eval_steps=2, inv_t=100, rand_init=True),
        norm_cfg=dict(type="GN", num_groups=4),
    ),
    "Mask2FormerHead": None,
    "MaskFormerHead": None,
    "NLHead": ONE,
    "OCRHead": dict(**ONE, ocr_channels=8),
    "PIDHead": dict(in_channels=16),
    "PSAHead": dict(**ONE, mask_size=(8, 8), psa_softmax=True),
    "PSPHead": ONE,
    "PointHead": dict(in_channels=[8], in_index=[0], num_fcs=1, norm_cfg=None),
    "SETRMLAHead": dict(in_channels=(16,) * 4, in_index=[0, 1, 2, 3], channels=16, mla_channels=4),
    "SETRUPHead": ONE,
    "STDCHead": dict(**ONE, num_classes=2, num_convs=1, boundary_threshold=0.1),
    "SegformerHead": ALL,
    "SegmenterMaskTransformerHead": dict(**TRANSFORMER, channels=16, norm_cfg=dict(type="LN")),
    "SideAdapterCLIPHead": None,
    "UPerHead": ALL,
    "VPDDepthHead": None,
}

# heads that want a list of losses, or whose loss lies deeper
LISTS = {
    "DDRHead": lambda loss: [loss, loss],
    "PIDHead": lambda loss: [
        *(loss, loss, dict(type="BoundaryLoss")),
        dict(type="OhemCrossEntropy") if loss is CE else loss,
    ],
}
CALLS = {"DAHead": 3, "IterativeDecodeHead": 4}


def build(name: str, loss: dict) -> Any:
    loss = LISTS[name](loss) if name in LISTS else loss
    options = copy.deepcopy(HEADS[name])
    if name == "IterativeDecodeHead":
        options["kernel_generate_head"]["loss_decode"] = copy.deepcopy(loss)
    else:
        shared = {"channels": 8, "num_classes": 3, "norm_cfg": BN}
        options = {**shared, **options, "loss_decode": copy.deepcopy(loss)}
    torch.manual_seed(0)
    return MODELS.build({"type": name, **options}).train()


def losses_of(head: Any, name: str, seed: int) -> dict[str, torch.Tensor]:
    """The losses of one iteration, from random features in place of a backbone's."""
    torch.manual_seed(seed)
    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, 32, 32))),
            gt_edge_map=PixelData(data=torch.randint(0, 2, (1, 32, 32))),
        )
        for _ in range(2)
    ]
    features = [torch.randn(2, c, s, s) for c, s in zip(CHANNELS, SIZES, strict=True)]
    if name == "DPTHead":
        features = [[torch.randn(2, 16, 4, 4), torch.randn(2, 16)] for _ in range(4)]
    if name == "SETRMLAHead":
        features = [torch.randn(2, 16, 8, 8) for _ in range(4)]
    if name == "LRASPPHead":
        features = [torch.randn(2, c, 52, 52) for c in CHANNELS]
    if name == "DDRHead":
        features = [features[0], features[3]]
    if name == "PIDHead":
        features = [features[0], torch.randn(2, 16, 16, 16), features[0]]
    if name in ("OCRHead", "PointHead"):
        cfg = ConfigDict(num_points=16, oversample_ratio=3, importance_sample_ratio=0.75)
        return head.loss(features, torch.randn(2, 3, 8, 8), samples, cfg)
    return head.loss(features, samples, {})


@pytest.fixture(autouse=True, scope="module")
def _scope():
    init_default_scope("mmseg")


def test_the_table_names_every_head_of_mmseg():
    helpers = {"KernelUpdateHead", "KernelUpdator"}
    assert set(HEADS) == set(decode_heads.__all__) - helpers


@pytest.mark.parametrize("name", [name for name, options in HEADS.items() if options is not None])
def test_two_steps_as_with_its_own_loss(name):
    gradients = []
    for loss in (CE, DMF):
        head = build(name, loss)
        for seed in range(2):
            for module in head.modules():
                if isinstance(module, dmf_plugins.mmseg.DMFLoss):
                    module.hooked = True  # as DMFHook does
                    module.begin_step()
            losses = losses_of(head, name, seed)
            total = sum(value for key, value in losses.items() if "loss" in key)
            head.zero_grad()
            total.backward()
            assert total.isfinite()
        gradients.append({k for k, p in head.named_parameters() if p.grad is not None})
    # the same parameters learn
    assert gradients[0] == gradients[1]
    found = [m for m in head.modules() if isinstance(m, dmf_plugins.mmseg.DMFLoss)]
    assert found
    for module in found:
        assert module.calls == CALLS.get(name, 1)
        # PIDNet's last loss sees boundaries alone, of which an untrained head finds none
        assert module.loss.fusion.step == 2 or (name == "PIDHead" and module is found[-1])
