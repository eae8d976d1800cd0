"""The loss contract of mmseg's heads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from .support import train  # noqa: F401  skips where MMSegmentation is absent

# isort: split
from mmengine.registry import HOOKS as ENGINE_HOOKS
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.losses import LovaszLoss
from mmseg.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmseg.structures import SegDataSample

import dmf_plugins
import dmf_plugins.mmseg as plugin
from dmf_plugins.losses import LOSSES


def test_everything_is_registered_with_and_without_its_scope():
    for registry, name, cls in (
        (MODELS, "DMFLoss", plugin.MMSegDMFLoss),
        (HOOKS, "DMFHook", plugin.DMFHook),
        (HOOKS, "EpochSeedHook", plugin.EpochSeedHook),
        (METRICS, "DMFMetric", plugin.DMFMetric),
        (DATASETS, "BreastUltrasoundDataset", plugin.BreastUltrasoundDataset),
        (TRANSFORMS, "BilateralFilter", plugin.BilateralFilter),
    ):
        assert registry.get(name) is registry.get(f"mmseg.{name}") is cls
    init_default_scope("mmseg")  # as a Runner builds its hooks
    for name in ("DMFHook", "mmseg.DMFHook"):
        assert isinstance(ENGINE_HOOKS.build(dict(type=name)), plugin.DMFHook)
    assert plugin.DMFLoss is plugin.MMSegDMFLoss


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
    assert loss.loss.names == ("ce", "CrossEntropyLoss", "LovaszLoss")
    loss(logits, label, ignore_index=255)
    ours, theirs, lovasz = loss.loss.last["terms"]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, label, ignore_index=255))
    assert lovasz > 0
    with pytest.raises(KeyError, match="did you mean 'LovaszLoss'"):
        MODELS.build(dict(type="DMFLoss", losses=["LovazsLoss"]))


def test_what_a_merged_base_config_leaves_behind():
    loss = MODELS.build(dict(type="DMFLoss", use_sigmoid=False, loss_weight=1.0))
    assert loss.loss.mode == "auto"
    assert MODELS.build(dict(type="DMFLoss", use_sigmoid=True)).loss.mode == "sigmoid"
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


def test_terms_may_be_given_as_classes():
    """As in configs that import what they name."""
    losses = [
        "ce",
        dict(type=LovaszLoss, reduction="none"),
        dict(type=LOSSES["tversky"], alpha=0.6),
    ]
    loss = MODELS.build(dict(type=plugin.DMFLoss, losses=losses))
    assert loss.loss.names == ("ce", "LovaszLoss", "tversky")
    assert loss.loss.losses[2].alpha == 0.6
    loss(torch.randn(1, 2, 8, 8), torch.zeros(1, 8, 8).long())


@pytest.mark.parametrize("left", [dict(gamma=2.0), dict(alpha=0.25), dict(naive_dice=True)])
def test_what_other_losses_leave_behind(left):
    with pytest.raises(TypeError, match=rf"does not take {next(iter(left))}.*_delete_=True"):
        MODELS.build(dict(type="DMFLoss", **left))


def test_an_empty_auxiliary_is_refused():
    with pytest.raises(TypeError, match="write None"):
        MODELS.build(dict(type="DMFLoss", auxiliary=""))


def test_independent_channels_get_each_class_against_the_rest():
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    label = torch.randint(0, 3, (2, 8, 8))
    regions = functional.one_hot(label, 3).movedim(-1, 1)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 0] = False
    label[:, 0] = 255
    theirs = dict(type="CrossEntropyLoss", use_sigmoid=True)
    spec = dict(losses=["ce", "dice"], auxiliary="cb_dice")
    loss = MODELS.build(dict(type="DMFLoss", use_sigmoid=True, **spec))
    expected = dmf_plugins.DMFLoss(mode="sigmoid", **spec)(logits, regions, mask)
    torch.testing.assert_close(loss(logits, label), expected)
    mixed = MODELS.build(dict(type="DMFLoss", use_sigmoid=True, losses=["ce", theirs]))
    mixed(logits, label).backward()
    stock = MODELS.build(theirs)(logits, label, ignore_index=255)
    torch.testing.assert_close(mixed.loss.last["terms"][1], stock)


def test_a_samplers_weights_reach_terms_of_mmseg():
    logits = torch.randn(2, 3, 8, 8)
    label = torch.randint(0, 3, (2, 8, 8))
    weight = (torch.rand(2, 8, 8) > 0.5).float()
    spec = dict(type="CrossEntropyLoss")
    loss = MODELS.build(dict(type="DMFLoss", losses=["ce", spec], auxiliary=None))
    loss(logits, label, weight=weight)
    stock = MODELS.build(spec)(logits, label, weight=weight, ignore_index=255)
    torch.testing.assert_close(loss.loss.last["terms"][1], stock)
    assert not torch.isclose(stock, MODELS.build(spec)(logits, label))


def test_several_calls_are_one_step_where_the_hook_says_so():
    loss = MODELS.build(dict(type="DMFLoss", memory_size=4, min_history=2))
    label = torch.randint(0, 2, (2, 8, 8))
    calls = [torch.randn(2, 2, 8, 8) for _ in range(6)]
    for logits in calls[:3]:
        loss(logits, label)
    assert loss.loss.fusion.step == 3  # nobody says where a step ends
    loss = MODELS.build(dict(type="DMFLoss", memory_size=4, min_history=2, loss_weight=0.5))
    loss.hooked = True
    for first in (0, 3):
        loss.begin_step()
        totals = [loss(logits, label) for logits in calls[first : first + 3]]
    assert loss.loss.fusion.step == 2
    torch.testing.assert_close(0.5 * loss.loss.last["total"], sum(totals))
    terms = torch.stack([dmf_plugins.DMFLoss().terms(c, label).values[:3] for c in calls[3:]])
    torch.testing.assert_close(loss.loss.last["terms"], terms.mean(dim=0))
