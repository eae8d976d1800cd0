"""How users name a term or a rule: a name, or a dict of a name and options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from dmf_plugins.registry import did_you_mean

Spec = str | Mapping[str, Any]
LossSpec = Spec | Callable[..., Any]


def canonical(spec: object, kind: str) -> str | dict[str, Any]:
    """The plainest form of a spec: its name, or ``{"type": name, **options}`` if it has options.

    Raises:
        TypeError: ``spec`` is neither, or its ``type`` is missing or no name.
    """
    if isinstance(spec, str) and spec:
        return spec
    if not isinstance(spec, Mapping):
        raise TypeError(
            f"a {kind} is a name, or a dict {{'type': name, ...}}; got {spec!r}"
            + (" (for none at all write None)" if spec == "" else "")
        )
    name = spec.get("type")
    if not isinstance(name, str):
        raise TypeError(
            f"a {kind} given as a dict needs a 'type' that is a name, got {dict(spec)!r}"
        )
    return name if len(spec) == 1 else {**spec}


def split(spec: Spec) -> tuple[str, dict[str, Any]]:
    """Name and options of a canonical spec."""
    options = {"type": spec} if isinstance(spec, str) else dict(spec)
    return options.pop("type"), options


def check_options(owner: str, options: Mapping[str, Any], known: list[str]) -> None:
    """Raise ``TypeError`` on an option that ``owner`` does not take."""
    for key in options:
        if key not in known:
            hint = f": {did_you_mean(key, known)}" if known else "; it takes none"
            raise TypeError(f"{owner} has no option {key!r}{hint}")


def option_names(entry: Callable[..., Any], skip: int = 0) -> list[str]:
    """Names of the options of a function or class, but for the first ``skip`` parameters."""
    parameters = list(inspect.signature(entry).parameters.values())[skip:]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def flatten(name: str, spec: Spec, options: Mapping[str, Any]) -> dict[str, Any]:
    """``{name: type, name.option: value, ...}`` with plain values, to save and to compare."""
    return {
        name: split(spec)[0],
        **{f"{name}.{key}": plain(value) for key, value in options.items()},
    }


def plain(value: Any) -> Any:
    """Lists of numbers for tuples, numbers of other kinds and tensors; text for anything else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))  # another address in every process
