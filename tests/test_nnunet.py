"""nnU-Net through its own commands on a small data set and a shrunken plan."""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dmf_plugins.data import convert_dataset
from dmf_plugins.errors import DataError
from dmf_plugins.paths import bundled

from .support.forked import fork_context
from .support.nnunet import CONFIGURATION, Workspace

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
pytestmark = pytest.mark.slow
PREDICT = ("-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities")
CHECKPOINT_KEYS = {
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema",
    "current_epoch", "init_args", "trainer_name", "inference_allowed_mirroring_axes",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(workspace: Workspace) -> Path:
    """Fold of an uninterrupted training of 4 epochs."""
    log = workspace.train("nnUNetTrainerDMF_Mine", TEST_EPOCHS="4")
    assert "Using splits from existing split file" in log
    splits = workspace.root / "nnUNet_preprocessed/Dataset501_BUSI/splits_final.json"
    fold = json.loads(splits.read_text())[0]
    assert f"{len(fold['train'])} training and {len(fold['val'])} validation cases" in log
    assert "DMF: variance weights of ce, dice" in log
    assert "DMF weights: ce 0." in log
    assert "replaces" not in log
    assert "Mean Validation Dice" in log
    return workspace.fold("nnUNetTrainerDMF_Mine")


@pytest.fixture(scope="module")
def predicted(workspace: Workspace, trained: Path, tmp_path_factory: pytest.TempPathFactory):
    """The test images as ``nnUNetv2_predict`` segments them, with probabilities."""
    folder = tmp_path_factory.mktemp("predicted")
    workspace.run(
        "nnUNetv2_predict", "-i", workspace.images, *PREDICT,
        *("-o", folder, "-d", 501, "-c", CONFIGURATION, "-f", 0, "-tr", "nnUNetTrainerDMF_Mine"),
    )  # fmt: skip
    return folder


def test_training_writes_log_picture_and_checkpoint(trained):
    log = pd.read_csv(trained / "dmf_log.csv")
    assert len(log) == 24  # training steps only: validation records nothing
    assert log["step"].tolist() == list(range(24))
    np.testing.assert_allclose(log["weight_ce"] + log["weight_dice"], 1, atol=1e-5)
    assert (log.loc[:2, "weight_ce"] == 0.5).all()
    assert log.loc[5:, "weight_ce"].nunique() > 10
    total = log["weight_ce"] * log["value_ce"] + log["weight_dice"] * log["value_dice"]
    np.testing.assert_allclose(log["total"], total + log["gamma"] * log["auxiliary"], rtol=1e-4)
    assert Image.open(trained / "dmf_dynamics.png").size == (1000, 900)
    checkpoint = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    assert set(checkpoint) == CHECKPOINT_KEYS | {"dmf"}
    assert checkpoint["dmf"]["step"] == 24
    assert not list(trained.glob("*.partial"))


def test_stock_network_loads_the_weights(workspace, trained):
    """The DMF state is not among the network's keys."""
    checkpoint = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    assert not any("dmf" in key or "loss" in key for key in checkpoint["network_weights"])


def test_a_killed_training_continues_bit_exactly(workspace, trained):
    """4 epochs in one go equal kill -9 in the midst of the third, and --c."""
    whole = (trained / "dmf_log.csv").read_text()
    final = torch.load(trained / "checkpoint_final.pth", weights_only=False)
    aside = trained.with_name("whole")
    shutil.rmtree(aside, ignore_errors=True)
    trained.rename(aside)
    try:
        workspace.train("nnUNetTrainerDMF_Mine", TEST_EPOCHS="4", TEST_KILL_IN_EPOCH="2", code=-9)
        assert (trained / "checkpoint_latest.pth").exists()
        # a kill while the log is written may leave a line cut short
        with (trained / "dmf_log.csv").open("a") as stream:
            stream.write("2,12,0.5,0.5\n")
        log = workspace.train("nnUNetTrainerDMF_Mine", "--c", TEST_EPOCHS="4")
        assert "DMF: resumed at step 12 with weights ce " in log
        assert (trained / "dmf_log.csv").read_text() == whole
        resumed = torch.load(trained / "checkpoint_final.pth", weights_only=False)
        for key, value in final["dmf"].items():
            assert torch.equal(resumed["dmf"][key], value) if torch.is_tensor(value) else True, key
        for key, value in final["network_weights"].items():
            assert torch.equal(resumed["network_weights"][key], value), key
    finally:
        shutil.rmtree(trained, ignore_errors=True)
        aside.rename(trained)


def test_nnunets_multi_gpu_worker_over_gloo(workspace, trained):
    """Both ranks of nnU-Net's ``run_ddp`` are killed, and continue with one memory and one log."""
    aside = trained.with_name("one_process")
    trained.rename(aside)

    def train(*options: str, code: int | None = 0, **environment: str) -> None:
        workspace.run(
            *("-m", "tests.support.nnunet_ddp", "2", "501", CONFIGURATION, "0", "nnUNetTrainerDMF_Mine"),
            *options, code=code, **environment,
        )  # fmt: skip

    try:
        train(TEST_KILL_IN_EPOCH="1", code=1)
        begun = torch.load(trained / "checkpoint_latest.pth", weights_only=False)["dmf"]
        assert begun["step"] == 6
        train("--c")
        ranks = [torch.load(trained / f"rank{r}.pth", weights_only=True) for r in range(2)]
        final = torch.load(trained / "checkpoint_final.pth", weights_only=False)["dmf"]
        for key, value in ranks[0].items():
            for other in (ranks[1], final):
                assert torch.equal(other[key], value) if torch.is_tensor(value) else True, key
        assert torch.equal(final["history"][:6], begun["history"][6:])
        log = pd.read_csv(trained / "dmf_log.csv")
        assert log["step"].tolist() == list(range(12))
        # the log has rank 0's values, the memory the mean with the other rank's batch
        assert not np.isclose(log["value_ce"], final["history"][:, 0]).any()
    finally:
        shutil.rmtree(trained, ignore_errors=True)
        aside.rename(trained)


def test_validation_only_and_prediction(workspace, predicted):
    # loads checkpoint_final, then checkpoint_best
    assert "Mean Validation Dice" in workspace.train("nnUNetTrainerDMF_Mine", "--val", "--val_best")
    labels = list((workspace.images.parent / "labelsTs").glob("*.png"))
    assert labels
    for label in labels:
        prediction = np.asarray(Image.open(predicted / label.name))
        assert prediction.shape == np.asarray(Image.open(label)).shape
        assert set(np.unique(prediction)) <= {0, 1}


def test_an_exported_model_predicts_the_same_without_the_plugin(
    workspace, trained, predicted, tmp_path
):
    from dmf_plugins.nnunet.export import export_nnunet

    model = trained.parent
    out = workspace.run("dmf", "export", model)
    exported = model.with_name(f"{model.name}_exported")
    assert f"-m {exported} -f 0" in out
    assert "--overwrite" in workspace.run("dmf", "export", model, code=2)
    itself = workspace.run("dmf", "export", model, model, "--overwrite", code=2)
    assert "holds the model itself" in itself
    with pytest.raises(DataError, match=r"plans\.json"):
        export_nnunet(trained)
    # a process in which the plug-in cannot be imported
    (tmp_path / "block" / "dmf_plugins").mkdir(parents=True)
    (tmp_path / "block" / "dmf_plugins" / "__init__.py").write_text("raise ImportError")
    workspace.run(
        "nnUNetv2_predict_from_modelfolder", "-i", workspace.images, *PREDICT,
        *("-o", tmp_path / "stock", "-m", exported, "-f", 0),
        PYTHONPATH=str(tmp_path / "block"), nnUNet_extTrainer="",
    )  # fmt: skip
    names = sorted(p.name for p in predicted.iterdir() if p.suffix in (".png", ".npz"))
    assert {Path(name).suffix for name in names} == {".png", ".npz"}
    for name in names:
        ours, stock = predicted / name, tmp_path / "stock" / name
        if name.endswith(".png"):
            assert ours.read_bytes() == stock.read_bytes()
        else:
            probabilities = (np.load(path)["probabilities"] for path in (ours, stock))
            np.testing.assert_array_equal(*probabilities)


# ------------------------------------------------- inside one process, for what no command shows


@pytest.fixture
def build(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Factory of initialised trainers, with a changed dataset.json if asked."""
    for name, value in workspace.environment.items():
        monkeypatch.setenv(name, value)
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    from dmf_plugins.nnunet import TRAINERS

    if isinstance(module.nnUNet_results, str):  # before 2.8 read once, when it is imported
        for name in ("nnUNet_preprocessed", "nnUNet_results"):
            monkeypatch.setattr(module, name, workspace.environment[name])
    base = workspace.root / "nnUNet_preprocessed" / "Dataset501_BUSI"

    def make(trainer: str | type, configuration=CONFIGURATION, device="cpu", **dataset):
        plans = json.loads((base / "nnUNetPlans.json").read_text())
        plans["continue_training"] = False
        content = {**json.loads((base / "dataset.json").read_text()), **dataset}
        made = TRAINERS[trainer] if isinstance(trainer, str) else trainer
        made = made(plans, configuration, 0, content, torch.device(device))
        made.initialize()
        return made

    return make


def test_learned_weights_are_refused_with_the_reason(build, monkeypatch):
    from dmf_plugins.nnunet import TRAINERS

    monkeypatch.setattr(TRAINERS["nnUNetTrainerDMF"], "dmf", {"weighting": "uncertainty"})
    with pytest.raises(ValueError, match="builds its optimizer before the loss"):
        build("nnUNetTrainerDMF")


def test_other_settings_are_refused_by_name_or_taken_on_purpose(trained, build, monkeypatch):
    from dmf_plugins.nnunet.finder import find_trainer

    path = trained / "checkpoint_best.pth"
    saved = torch.load(path, weights_only=False)["dmf"]
    mine = find_trainer("nnUNetTrainerDMF_Mine")
    other = type(f"{mine.__name__}Other", (mine,), {"dmf": {**mine.dmf, "gamma0": 2.0}})

    def resume(**attributes: str):
        trainer = build(type(other.__name__, (other,), attributes))
        trainer.load_checkpoint(str(path))
        return trainer

    with pytest.raises(
        RuntimeError, match=r"gamma0=5\.0 in the saved run, 2\.0 now.*DMF_RESUME=new"
    ):
        resume().run_training()
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", fork_context)
        resume().perform_actual_validation()  # --val takes any
    assert resume(dmf_resume="new").loss.loss.fusion.step == saved["step"]
    monkeypatch.setenv("DMF_RESUME", "new")
    continued = resume()
    assert continued._dmf_resume_error is None
    assert torch.equal(continued.loss.loss.weights, saved["weights"])
    monkeypatch.setenv("DMF_RESUME", "afresh")
    begun = resume()
    assert begun._dmf_resume_error is None
    assert begun.current_epoch > 0
    assert begun.loss.loss.fusion.step == 0
    monkeypatch.setenv("DMF_RESUME", "yes")
    with pytest.raises(RuntimeError, match="'yes', not same, new or afresh"):
        resume().run_training()


def test_a_checkpoint_without_a_memory_or_damaged(trained, build, tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    checkpoint = torch.load(trained / "checkpoint_best.pth", weights_only=False)
    del checkpoint["dmf"]
    torch.save(checkpoint, path)
    trainer = build("nnUNetTrainerDMF")
    trainer.load_checkpoint(str(path))
    with pytest.raises(RuntimeError, match=r"without DMF.*-pretrained_weights"):
        trainer.run_training()
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(RuntimeError, match=r"checkpoint_latest\.pth is damaged.*Remove it"):
            trainer.load_checkpoint(str(path))
    with pytest.raises(FileNotFoundError):
        trainer.load_checkpoint(str(tmp_path / "checkpoint_final.pth"))


def test_an_intact_checkpoint_is_never_called_damaged(build, tmp_path, monkeypatch):
    """Trainers with warm-up read by torch's safe loading, which refuses nnU-Net's own numbers."""
    from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import (
        nnUNetTrainer_warmup,
    )

    from dmf_plugins.nnunet import DMFTrainerMixin

    trainer = build(type("Warm", (DMFTrainerMixin, nnUNetTrainer_warmup), {}))
    trainer._best_ema = np.float64(0.5)  # as after an epoch
    path = str(tmp_path / "checkpoint_latest.pth")
    trainer.save_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        trainer.load_checkpoint(path)
    assert "is whole" in Path(trainer.log_file).read_text()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trainer.load_checkpoint(path)
    assert trainer._best_ema == 0.5
    assert trainer._dmf_resume_error is None

    checkpoint = torch.load(path, weights_only=False)
    checkpoint["network_weights"].popitem()
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match="Missing key") as raised:
        trainer.load_checkpoint(path)
    assert "damaged" not in str(raised.value)


def test_gpus_that_are_missing_are_told_before_the_work(build):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match=r"wants 1 GPU\(s\) and finds 0: -device cpu"):
        build("nnUNetTrainerDMF", device="cuda")


def test_every_documented_trainer_is_found_and_pickles(workspace, build):
    from dmf_plugins.nnunet.finder import find_trainer

    names = ["nnUNetTrainerDMF", "nnUNetTrainerDMF_Fixed", "nnUNetTrainerDMF_Quick"]
    names += [
        f"nnUNetTrainerDMF_{rule}_{auxiliary}"
        for rule in ("Variance", "MAD", "Bayesian")
        for auxiliary in ("CBDice", "Tversky", "Focal", "NoAux")
    ]
    for name in names:
        found = find_trainer(name)
        assert pickle.loads(pickle.dumps(found)) is found
        loss = build(name).loss.loss
        rule = name.split("_")[1].lower() if name.count("_") == 2 else None
        assert rule in (None, loss.fusion.config.weighting)
    assert build("nnUNetTrainerDMF_Fixed").loss.loss.auxiliary is None


def test_the_trainers_folder_needs_no_mmseg(workspace):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import dmf;"
        "assert not any(m.split('.')[0] in ('mmseg', 'mmcv', 'mmengine') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(bundled("nnunet_trainers"))], check=True)


def test_the_loss_is_compiled_where_nnunet_compiles(build):
    from dmf_plugins.nnunet import TRAINERS
    from dmf_plugins.nnunet.compiled import Compiled

    plain = TRAINERS["nnUNetTrainerDMF"]
    compiling = type("nnUNetTrainerDMF2", (plain,), {"_do_i_compile": lambda self: True})
    for trainer, expected in ((plain, False), (compiling, True)):
        assert isinstance(build(trainer).loss.terms, Compiled) == expected


def test_scales_are_combined_per_term_and_recorded_once(build):
    trainer = build("nnUNetTrainerDMF")
    loss = trainer.loss
    assert loss.scale_weights == [1.0, 0.0]
    loss.scale_weights = [0.75, 0.25]
    outputs = [torch.randn(2, 2, s, s, requires_grad=True) for s in (64, 32)]
    targets = [torch.randint(0, 2, (2, 1, s, s)) for s in (64, 32)]
    expected = 0.75 * loss.loss.terms(outputs[0], targets[0]).values
    expected = expected + 0.25 * loss.loss.terms(outputs[1], targets[1]).values
    total = loss(outputs, targets)
    torch.testing.assert_close(loss.loss.last["terms"], expected[:3].detach())
    assert loss.loss.fusion.step == 1
    total.backward()
    assert all(output.grad.abs().sum() > 0 for output in outputs)
    loss(outputs[0], targets[0])  # one plain tensor, as with deep supervision switched off
    assert loss.loss.fusion.step == 2
    with torch.no_grad():
        loss(outputs, targets)
    assert loss.loss.fusion.step == 2
    with pytest.raises(ValueError, match="2 scale weights"):
        loss([*outputs, outputs[0]], [*targets, targets[0]])


def test_ignore_label_and_regions(build):
    ignoring = build("nnUNetTrainerDMF", labels={"background": 0, "lesion": 1, "ignore": 2})
    logits = torch.randn(2, 2, 64, 64, requires_grad=True)
    total = ignoring.loss([logits, logits[..., ::2, ::2]], [torch.full((2, 1, 64, 64), 2)] * 2)
    assert total.item() == 0
    assert ignoring.loss.loss.fusion.step == 0

    regions = build(
        "nnUNetTrainerDMF",
        labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        regions_class_order=[1, 2],
    )
    target = torch.rand(2, 3, 64, 64) > 0.5
    plain = regions.loss.loss.terms(logits, target[:, :2], mask=~target[:, 2:]).values
    regions.loss(logits, target)
    torch.testing.assert_close(regions.loss.loss.last["terms"], plain[:3].detach())
    assert regions.loss.loss.fusion.step == 1


def stock_trainers() -> list[type]:
    """Every trainer in nnU-Net's package, but for networks too large for a test."""
    package = importlib.import_module("nnunetv2.training.nnUNetTrainer")
    modules = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    found = [
        value
        for module in [importlib.import_module(info.name) for info in modules if not info.ispkg]
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    base = importlib.import_module(f"{package.__name__}.nnUNetTrainer").nnUNetTrainer
    large = re.compile(r"Primus(V\d|_)[BML]|_96_")  # as Primus S, but for the size
    return [t for t in found if issubclass(t, base) and not large.search(t.__name__)]


def volumes(trainer) -> tuple:
    """Generated batches of the 3-D plan, as nnU-Net's loaders give them."""
    shape = (2, 1, *trainer.configuration_manager.patch_size)
    scales = trainer._get_deep_supervision_scales()

    def batches():
        while True:
            target = torch.randint(0, 2, shape).float()
            factors = [round(1 / scale[0]) for scale in scales or []]
            targets = [target[(..., *[slice(None, None, f)] * 3)] for f in factors]
            yield {"data": torch.randn(shape), "target": targets or target}

    return batches(), batches()


def test_every_trainer_of_nnunet_trains_with_the_mixin(build, monkeypatch, capsys):
    """Two steps each; one that stock nnU-Net cannot train either, here or at all, is left out."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from dmf_plugins.nnunet import DMFTrainerMixin

    # two pictures of each training would take nine tenths of the time
    monkeypatch.setattr("dmf_plugins.report.recorder.plot_dynamics", lambda log, picture: None)

    def train(*bases: type) -> str:
        """What went wrong, empty if nothing did."""
        volumetric = "Primus" in bases[-1].__name__
        trainer_class = type(
            f"{bases[-1].__name__}{len(bases)}",
            bases,
            {"get_dataloaders": volumes} if volumetric else {},
        )
        try:
            trainer = build(trainer_class, "3d_tiny" if volumetric else CONFIGURATION)
            trainer.num_epochs, trainer.disable_checkpointing = 1, True
            trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 1
            trainer.logger.plot_progress_png = lambda folder: None
            trainer.run_training()
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        finally:
            if volumetric:
                gc.collect()  # trainer and optimizer hold each other, gigabytes of these
        if DMFTrainerMixin in bases:
            assert len(pd.read_csv(Path(trainer.output_folder) / "dmf_log.csv")) == 2
            told = re.search(r"DMF replaces the loss of .*", Path(trainer.log_file).read_text())
            assert (told is not None) == (bases[-1]._build_loss is not nnUNetTrainer._build_loss)
            replaced.append(told and told.group().rstrip())
        return ""

    trained, left_out, failed, replaced = [], {}, {}, []
    for stock in stock_trainers():
        if not (problem := train(DMFTrainerMixin, stock)):
            trained.append(stock.__name__)
        elif reason := train(stock):
            left_out[stock.__name__] = reason
        else:
            failed[stock.__name__] = problem
    with capsys.disabled():
        print(f"\n{len(trained)} trainers of nnU-Net train with the mixin")
        print("\n".join(f"left out {name}: {reason}" for name, reason in left_out.items()))
    assert not failed
    assert len(trained) >= 50
    assert {"nnUNetTrainer_warmup", "nnUNetTrainerDA5", "nnUNet_Primus_S_Trainer"} <= set(trained)
    told = "DMF replaces the loss of nnUNetTrainerDiceLoss (MemoryEfficientSoftDiceLoss)"
    assert told in replaced


@pytest.mark.parametrize("scheme", ["ignore", "regions"])
def test_training_with_ignore_label_or_regions(scheme, phantoms, tmp_path):
    """Through the commands, on labels that really hold them."""
    space = Workspace(tmp_path)
    target = convert_dataset(
        "busi", phantoms, dataset_id=502, output=tmp_path / "nnUNet_raw", labels="benign-malignant"
    ).target
    dataset = json.loads((target / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "benign": 1, "malignant": 2, "ignore": 3}
    if scheme == "regions":
        dataset["labels"] = {"background": 0, "lesion": [1, 2], "malignant": 2, "ignore": 3}
        dataset["regions_class_order"] = [1, 2]
    (target / "dataset.json").write_text(json.dumps(dataset))
    for path in (target / "labelsTr").glob("*.png"):
        label = np.array(Image.open(path))
        label[:10] = 3
        Image.fromarray(label).save(path)
    space.prepare(502)
    log = space.train("nnUNetTrainerDMF_Mine", dataset=502)
    assert "Training done" in log
    steps = pd.read_csv(space.fold("nnUNetTrainerDMF_Mine", target.name) / "dmf_log.csv")
    assert len(steps) == 12
    assert np.isfinite(steps["total"]).all()
    assert steps["weight_ce"].nunique() > 3


def test_after_another_conversion_nnunet_plans_for_the_new_images(phantoms, tmp_path, monkeypatch):
    space = Workspace(tmp_path / "with a space")
    for name, value in space.environment.items():
        monkeypatch.setenv(name, value)

    def next_steps(size: int) -> list[str]:
        options = {"dataset_id": 503, "size": (size, size), "overwrite": True}
        return convert_dataset("busi", phantoms, **options).next_steps

    planning = "nnUNetv2_plan_and_preprocess -d 503"
    first = next_steps(48)
    assert first[0].startswith(planning)
    space.prepare(503, "--no_pp")
    removing, again, _ = next_steps(32)
    assert again.startswith(planning)
    subprocess.run(["bash", "-ec", removing], check=True)
    space.prepare(503, "--no_pp")
    (plans,) = (space.root / "nnUNet_preprocessed").glob("*/nnUNetPlans.json")
    assert json.loads(plans.read_text())["original_median_shape_after_transp"] == [1, 32, 32]
