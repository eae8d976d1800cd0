"""``dmf export`` of models that must not be exported: an error, and nothing written."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from dmf_plugins.errors import DataError, DMFError, UsageError
from dmf_plugins.nnunet.export import export_nnunet

from .support.commands import dmf

ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2, "features_per_stage": [2, 4], "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3], [3, 3]], "strides": [[1, 1], [2, 2]], "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d", "norm_op_kwargs": {},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as nnU-Net leaves it, of a network of a few weights."""
    folder = tmp_path / "nnUNetTrainerDMF__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    plans = {
        "dataset_name": "Dataset501_BUSI", "plans_name": "nnUNetPlans", "label_manager": "LabelManager",
        "configurations": {"2d": {"architecture": ARCHITECTURE, "previous_stage": None}},
    }  # fmt: skip
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "us"}, "labels": {"background": 0, "lesion": 1}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    network = get_network_from_plans(*ARCHITECTURE.values(), 1, 2, deep_supervision=False)
    write(folder, network_weights=network.state_dict())
    return folder


def write(folder: Path, **changes: object) -> None:
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = {"trainer_name": "nnUNetTrainerDMF", "init_args": {"configuration": "2d"}}
    earlier = torch.load(path, weights_only=False) if path.exists() else {}
    torch.save({**checkpoint, **earlier, **changes}, path)


def test_a_sound_model_is_exported_and_stays_ours_to_replace(model, tmp_path):
    assert export_nnunet(model, tmp_path / "out") == tmp_path / "out"
    with pytest.raises(UsageError, match="--overwrite"):
        export_nnunet(model, tmp_path / "out")
    export_nnunet(model, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "fold_0" / "training_log_1.txt").touch()  # somebody trains on from it
    with pytest.raises(
        UsageError, match=r"training_log_1\.txt was not written by .* would be lost"
    ):
        export_nnunet(model, tmp_path / "out", overwrite=True)


def test_an_export_does_not_lie_where_nnunet_would_train_on_from_it(model):
    assert export_nnunet(model) == model.with_name(f"{model.name}_exported")


def test_the_command_to_run_it_can_be_pasted(model, tmp_path):
    result = dmf("export", model, "--output", tmp_path / "my models")
    assert result.returncode == 0, result.stderr
    assert shlex.split(result.stdout)[-4:] == ["-m", str(tmp_path / "my models"), "-f", "0"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("plans.json", "{"),
        ("plans.json", "[]"),
        ("plans.json", '{"configurations": {}}'),
        ("plans.json", '{"configurations": {"2d": {"architecture": {}}}}'),
        ("dataset.json", "{}"),
        ("fold_0/checkpoint_final.pth", "junk"),
    ],
)
def test_damaged_files_are_named_and_nothing_is_written(file, content, model, tmp_path):
    (model / file).write_text(content)
    with pytest.raises(DataError) as caught:
        export_nnunet(model, tmp_path / "out")
    assert Path(file).name in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [model.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer_name": "nnUNetTrainer"}, "nnU-Net's own; its model needs no export"),
        ({"trainer_name": "nnUNetTrainerNone"}, "nnUNet_extTrainer"),
        ({"network_weights": {}}, "Missing key"),
        ({"init_args": {"configuration": "3d_fullres"}}, "3d_fullres"),
    ],
)
def test_a_model_that_stock_nnunet_would_not_load(changes, message, model, tmp_path):
    write(model, **changes)
    with pytest.raises(DMFError, match=message):
        export_nnunet(model, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [model.name]


def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(model, tmp_path):
    path = model / "fold_0" / "checkpoint_final.pth"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"checkpoint_final\.pth is not a regular file"):
        export_nnunet(model, tmp_path / "out")


def test_options_of_the_other_framework_are_refused(model, tmp_path):
    for option in ("--config", "--checkpoint"):
        result = dmf("export", model, "--output", tmp_path / "out", option, model / "plans.json")
        assert (result.returncode, "MMSegmentation's" in result.stderr) == (2, True)
    (model / "plans.json").write_text("{")
    result = dmf("export", model, "--output", tmp_path / "out")
    assert (result.returncode, "plans.json" in result.stderr) == (1, True), result.stderr
    assert [p.name for p in tmp_path.iterdir()] == [model.name]
