"""What a checkpoint holds of the fusion, and whether it may go on with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dmf_plugins.core.spec import canonical, flatten
from dmf_plugins.core.weighting import rule_settings

Resume = Literal["same", "new"]
VERSIONS = (1, 2)


class SettingsDiffer(ValueError):
    """The saved run had other settings; the text names each with both values."""


def pack(names: Sequence[str], settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """A state as plain CPU tensors, numbers and strings."""
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    return {"version": VERSIONS[-1], "names": list(names), "settings": dict(settings), **plain}


def unpack(
    state: object,
    names: Sequence[str],
    settings: Mapping[str, Any],
    initial: Mapping[str, Tensor],
    resume: Resume,
) -> dict[str, Tensor]:
    """Tensors of a saved state, by the names in ``initial``; those that a new rule lacks are initial.

    Raises:
        SettingsDiffer: a setting has another value, and ``resume`` is ``same``.
        ValueError: the state is no state, damaged, or of other terms.
    """
    if resume not in ("same", "new"):
        raise ValueError(f"resume must be 'same' or 'new', got {resume!r}")
    if not isinstance(state, Mapping) or state.get("version") not in VERSIONS:
        found = f"keys {sorted(map(str, state))[:8]}" if isinstance(state, Mapping) else type(state)
        raise ValueError(f"not a DMF state of version {VERSIONS[-1]}: {found}")
    if state.get("names") != list(names):
        raise ValueError(
            f"the DMF state was saved with the terms names={state.get('names')}, this fusion has "
            f"{list(names)}; a memory cannot go on with other terms"
        )
    if resume == "same":
        compare(_settings_of(state), settings)
    tensors = {}
    for key, start in initial.items():
        value = state.get(key)
        if value is None and resume == "new" and key not in ("history", "weights", "step"):
            tensors[key] = start
            continue
        if not isinstance(value, Tensor) or value.dtype != start.dtype:
            raise ValueError(f"the DMF state lacks {key!r} as a {start.dtype} tensor")
        if key == "history" and resume == "new" and value.ndim == start.ndim:
            value = _fit(value, len(start), int(tensors["step"]))
        if value.shape != start.shape:
            raise ValueError(
                f"the DMF state has {key} of shape {tuple(value.shape)}, this fusion {tuple(start.shape)}"
            )
        _check_values(key, value)
        tensors[key] = value
    return tensors


def _check_values(key: str, value: Tensor) -> None:
    """Raise ``ValueError`` for what no training leaves; a rule's own state may hold the log of 0."""
    if value.isnan().any():
        raise ValueError(f"the DMF state holds NaN in {key}")
    if key == "history" and not value.isfinite().all():
        raise ValueError("the DMF state holds values in history that are not finite")
    if key in ("step", "skipped", "weights") and (value < 0).any():
        raise ValueError(f"the DMF state holds a negative number in {key}")
    if key == "weights" and abs(value.sum() - 1) > 1e-3:
        raise ValueError(f"the DMF state holds weights that do not sum to 1: {value.tolist()}")


def compare(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsDiffer` where a setting that both know has two values."""
    lines = [
        f"{key}={saved[key]!r} in the saved run, {value!r} now"
        for key, value in mine.items()
        if key in saved and saved[key] != value
    ]
    if lines:
        raise SettingsDiffer(f"the DMF state was saved with other settings: {'; '.join(lines)}")


def _settings_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    if state["version"] > 1:
        settings = state.get("settings")
        return settings if isinstance(settings, Mapping) else {}
    # 0.1.0 wrote the rule and, in the shape of the memory, its size
    try:
        spec = canonical(state.get("weighting"), "weighting")
        found = flatten("weighting", spec, rule_settings(spec))
    except (KeyError, TypeError) as error:
        raise ValueError(f"the DMF state names no rule that is known here: {error}") from error
    history = state.get("history")
    if isinstance(history, Tensor) and history.ndim:
        found["memory_size"] = len(history)
    return found


def _fit(history: Tensor, rows: int, steps: int) -> Tensor:
    """The newest rows of a memory of another size, oldest first."""
    missing = rows - len(history)
    if missing <= 0:
        return history[-missing:]
    if steps > len(history):
        raise ValueError(
            f"a memory of {len(history)} steps cannot grow to {rows}: what it would hold is lost; "
            "keep memory_size, or start with an empty memory"
        )
    return torch.cat((history.new_zeros(missing, history.shape[1]), history))
