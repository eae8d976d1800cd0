"""A copy of a trained model that MMSegmentation runs without this plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from dmf_plugins.atomic import building, check_target
from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.mmseg.checkpoint import allow_log
from dmf_plugins.paths import lies_in

CONFIG, CHECKPOINT = "config.py", "model.pth"
_PLUGIN = "dmf_plugins"


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
    ``BaseSegDataset``, our metric an ``IoUMetric``; our hook and the state of the memory go.

    Args:
        work_dir: of the training.
        output: folder to write.
        config: None for the one the training left in ``work_dir``.
        checkpoint: None for the best, else the last one.
        overwrite: replace an existing folder.

    Raises:
        UsageError: ``output`` exists, or the pipeline filters images with our transform.
        DataError: ``work_dir`` is no finished training, or a file cannot be read.
    """
    config = config or _only(work_dir, ["*.py"], "config")
    checkpoint = checkpoint or _only(work_dir, ["best_*.pth"], "best checkpoint", last=True)
    if lies_in(work_dir, output):
        raise UsageError(f"{output} holds the training itself; choose another folder")
    check_target(output, "export", overwrite)
    allow_log()
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state, meta = content["state_dict"], content.get("meta", {})
    except Exception as error:
        raise DataError(f"{checkpoint} is not a readable checkpoint ({error!r})") from error
    cfg = plain_config(Config.fromfile(config), meta.get("dataset_meta", {}))
    weights = {key: value for key, value in state.items() if ".loss_decode." not in key}
    with building(output, "export", overwrite) as folder:
        cfg.dump(str(folder / CONFIG))
        kept = {"dataset_meta": meta.get("dataset_meta")}
        torch.save({"state_dict": weights, "meta": kept}, folder / CHECKPOINT)
    return output


def plain_config(cfg: Config, dataset_meta: dict[str, Any]) -> Config:
    """The config without anything this plug-in registers."""
    for part in _dicts(cfg._cfg_dict):
        kind = part.get("type")
        if kind == "BilateralFilter":
            raise UsageError(
                "the pipeline has BilateralFilter, which exists here alone: convert or filter the "
                "images beforehand (dmf filter), take the step out of the config and export that"
            )
        if kind == "BreastUltrasoundDataset":
            part.pop("labels", None)
            part.update(
                type="BaseSegDataset",
                img_suffix=".png",
                seg_map_suffix=".png",
                reduce_zero_label=False,
                metainfo={k: dataset_meta[k] for k in ("classes", "palette") if k in dataset_meta},
            )
        if "loss_decode" in part:
            sigmoid = part.get("out_channels") == 1
            part["loss_decode"] = _plain_losses(part["loss_decode"], sigmoid)
    for key in ("val_evaluator", "test_evaluator"):
        if key in cfg and cfg[key] is not None:
            several = cfg[key] if isinstance(cfg[key], list) else [cfg[key]]
            stock = [e for e in several if e["type"] != "DMFMetric"]
            cfg[key] = stock or [dict(type="IoUMetric", iou_metrics=["mIoU", "mDice"])]
    hooks = cfg.get("custom_hooks") or []
    cfg.custom_hooks = [hook for hook in hooks if hook["type"] != "DMFHook"]
    imports = dict(cfg.get("custom_imports") or {})
    imports["imports"] = [i for i in imports.get("imports", []) if not i.startswith(_PLUGIN)]
    cfg.custom_imports = imports if imports["imports"] else None
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint")
    if checkpoint is not None and str(checkpoint.get("save_best", "")).startswith("lesion"):
        checkpoint["save_best"] = "mDice"
    cfg.load_from, cfg.resume = None, False
    return cfg


def _plain_losses(losses: Any, sigmoid: bool) -> Any:
    several = losses if isinstance(losses, list) else [losses]
    stock = [loss for loss in several if loss["type"] != "DMFLoss"]
    if len(stock) < len(several) and not stock:
        return dict(type="CrossEntropyLoss", use_sigmoid=sigmoid, loss_weight=1.0)
    return stock if isinstance(losses, list) else losses


def _dicts(node: Any) -> Iterator[ConfigDict]:
    """Every dict of a config, at any depth."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list, tuple)):
            yield from _dicts(child)


def _only(folder: Path, patterns: list[str], what: str, last: bool = False) -> Path:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not found and last and (folder / "last_checkpoint").is_file():
        found = [Path((folder / "last_checkpoint").read_text(encoding="utf-8").strip())]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        option = "--config" if "config" in what else "--checkpoint"
        raise DataError(f"{folder} has no single {what} ({names}); give one with {option}")
    return found[0]
