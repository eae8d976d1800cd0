"""A copy of a trained model that MMSegmentation runs without this plug-in."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from dmf_plugins import mmseg
from dmf_plugins.atomic import building, check_target
from dmf_plugins.errors import DataError, DMFError, UsageError
from dmf_plugins.mmseg.checkpoint import last_checkpoint, load_from_local
from dmf_plugins.paths import lies_in

CONFIG, CHECKPOINT = "config.py", "model.pth"
_PLUGIN = "dmf_plugins"
_FILTER = "BilateralFilter"
_OURS = {*mmseg.__all__} - {_FILTER}  # the filter has no counterpart, all others go or are replaced
_OUR_SCORE = re.compile(r"(^|/)((lesions?|paper|false)_\w+|accuracy|cb_dice)$")
_LOSSES = {"DMFLoss", "MMSegDMFLoss"}
_PLAIN_METRIC = {"type": "IoUMetric", "iou_metrics": ["mIoU", "mDice"]}
# run with the result, in a process where nothing of ours can be imported
_PROOF = f"""
import sys, tempfile
sys.modules["{_PLUGIN}"] = None
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import DATASETS
init_model(sys.argv[1], sys.argv[2], device="cpu")
with tempfile.TemporaryDirectory() as folder:
    cfg = Config.fromfile(sys.argv[1])
    cfg.work_dir, cfg.launcher, cfg.visualizer = folder, "none", None
    runner = Runner.from_cfg(cfg)
    for part in ("val", "test"):
        if cfg.get(part + "_evaluator"):
            runner.build_evaluator(cfg[part + "_evaluator"])
    for part in ("train", "val", "test"):
        data = (cfg.get(part + "_dataloader") or {{}}).get("dataset")
        assert data is None or DATASETS.get(data["type"]), data["type"]
"""


def export_mmseg(
    work_dir: Path,
    output: Path,
    *,
    config: Path | None = None,
    checkpoint: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``config.py`` and ``model.pth`` with nothing of ours in them.

    The losses become cross-entropy (which takes no part in prediction), our data set a
    ``BaseSegDataset``, our metric an ``IoUMetric``; our hooks and the state of the memory go. The
    result is loaded without this package before it is put in place.

    Args:
        work_dir: of the training.
        output: folder to write.
        config: None for the one the training left in ``work_dir``.
        checkpoint: None for the best, else the last one.
        overwrite: replace an existing folder.

    Raises:
        UsageError: ``output`` exists, or the pipeline filters images with our transform.
        DataError: ``work_dir`` is no finished training, or a file cannot be read.
        DMFError: the result does not load without this package.
    """
    config = config or _only(work_dir, "*.py", "config")
    checkpoint = checkpoint or _only(work_dir, "best_*.pth", "checkpoint")
    if lies_in(work_dir, output):
        raise UsageError(f"{output} holds the training itself; choose another folder")
    check_target(output, "export", overwrite)
    content = load_from_local(str(checkpoint), "cpu")
    if not isinstance(content, dict) or "state_dict" not in content:
        raise DataError(f"{checkpoint} is no checkpoint of MMSegmentation: it has no state_dict")
    kept = {"dataset_meta": content.get("meta", {}).get("dataset_meta")}
    cfg = plain_config(Config.fromfile(config), kept["dataset_meta"] or {})
    state = content["state_dict"].items()
    weights = {key: value for key, value in state if ".loss_decode." not in key}
    with building(output, "export", overwrite) as folder:
        cfg.dump(str(folder / CONFIG))
        torch.save({"state_dict": weights, "meta": kept}, folder / CHECKPOINT)
        _prove(folder)
    return output


def _prove(folder: Path) -> None:
    command = [sys.executable, "-c", _PROOF, str(folder / CONFIG), str(folder / CHECKPOINT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DMFError(
            "nothing was written: the result does not load without this package\n"
            + result.stderr[-2000:]
        )


def plain_config(cfg: Config, dataset_meta: dict[str, Any]) -> Config:
    """The config without anything this plug-in registers."""
    content = cfg._cfg_dict
    used = inspect.signature(Runner.__init__).parameters
    for name in [n for n, value in content.items() if n not in used and _mentions(value)]:
        del content[name]  # a variable that only helped to write the config
    for name in ("val_evaluator", "test_evaluator"):
        if isinstance(content.get(name), list):
            content[name] = _one_evaluator(content[name])
    hooks = content.get("default_hooks") or {}
    content.default_hooks = {k: hook for k, hook in hooks.items() if _kind(hook) not in _OURS}
    hooks = content.get("custom_hooks") or []
    content.custom_hooks = [hook for hook in hooks if _kind(hook) not in _OURS]
    for part in list(_dicts(content)):
        _plain_part(part, dataset_meta)
    imports = dict(content.get("custom_imports") or {})
    imports["imports"] = [i for i in imports.get("imports", []) if not i.startswith(_PLUGIN)]
    content.custom_imports = imports if imports["imports"] else None
    content.load_from, content.resume = None, False
    return cfg


def _one_evaluator(several: list[Any]) -> list[Any]:
    """Two ``IoUMetric`` would report the same names: beside one, ours becomes a part of it."""
    stock = [one for one in several if _kind(one) == "IoUMetric" and not one.get("prefix")]
    if not stock:
        return several
    names = stock[0].get("iou_metrics", ["mIoU"])
    stock[0]["iou_metrics"] = list(dict.fromkeys([*names, "mDice"]))
    return [one for one in several if _kind(one) != "DMFMetric" or one.get("prefix")]


def _plain_part(part: ConfigDict, dataset_meta: dict[str, Any]) -> None:
    """Replace one dict of a config by its stock counterpart, in place."""
    kind = _kind(part)
    if kind == _FILTER:
        raise UsageError(
            "the pipeline has BilateralFilter, which exists here alone: convert or filter the "
            "images beforehand (dmf filter), take the step out of the config and export that"
        )
    if kind == "BreastUltrasoundDataset":
        part.pop("labels", None)
        part.update(type="BaseSegDataset", img_suffix=".png", seg_map_suffix=".png")
        part.reduce_zero_label = False
        part.metainfo = {k: dataset_meta[k] for k in ("classes", "palette") if k in dataset_meta}
    if kind == "DMFMetric":
        kept = {k: part[k] for k in ("prefix", "ignore_index", "collect_device") if k in part}
        part.clear()
        part.update(**_PLAIN_METRIC, **kept)
    if kind in _LOSSES:
        kept = {key: part[key] for key in ("loss_weight", "loss_name") if key in part}
        sigmoid = bool(part.get("use_sigmoid"))
        part.clear()
        part.update(type="CrossEntropyLoss", use_sigmoid=sigmoid, **kept)
    losses = part.get("loss_decode")
    if part.get("out_channels") == 1:  # children come later, and keep what is set here
        for loss in losses if isinstance(losses, list) else [losses]:
            if _kind(loss) in _LOSSES:
                loss["use_sigmoid"] = True
    for key in ("save_best", "monitor"):
        if key in part and (plain := _plain_scores(part[key])) != part[key]:
            part[key] = plain
            if part.get("rule") == "less":  # of false alarms
                part.rule = "greater"


def _plain_scores(names: Any) -> Any:
    """Scores to watch with those of our metric replaced by its stock counterpart's."""
    if isinstance(names, (list, tuple)):
        return list(dict.fromkeys(_plain_scores(name) for name in names))
    if not isinstance(names, str) or not _OUR_SCORE.search(names):
        return names
    prefix = names.rpartition("/")[0]
    return f"{prefix}/mDice" if prefix else "mDice"


def _name(value: Any) -> str | None:
    """Name of a class, whether given as such, as its path or with a scope."""
    if isinstance(value, type):
        return value.__name__
    return value.rpartition(".")[2] if isinstance(value, str) else None


def _kind(part: Any) -> str | None:
    """Name of what a dict of a config builds."""
    return _name(part.get("type")) if isinstance(part, dict) else None


def _mentions(value: Any) -> bool:
    """Whether a variable of a config is, or holds, something of ours."""
    return _name(value) in _OURS or any(_kind(part) in _OURS for part in _dicts(value))


def _dicts(node: Any) -> Iterator[ConfigDict]:
    """Every dict of a config, at any depth, parents first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts(child)


def _only(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found and what == "checkpoint" and (last := last_checkpoint(folder)):
        found = [last]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder} has no single {what} ({names}); give one with --{what}")
    return found[0]
