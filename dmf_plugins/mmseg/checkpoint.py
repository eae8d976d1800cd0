"""Checkpoints that torch reads without trusting them.

mmengine pickles its log as objects, which torch >= 2.6 refuses by default. With DMFHook the log is
stored as tensors, so that every reader of the file gets along with torch's safe loading.
"""

from __future__ import annotations

import os
import pickle
import shlex
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import apply_to

from dmf_plugins.errors import DataError

# what checkpoints of version 0.1.0 hold beside plain data: harmless constructors and numbers
_EARLIER: list[Any] = [HistoryBuffer, np.float64().__reduce__()[0], np.dtype]
_EARLIER += [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]


def to_plain(hub: Any) -> Any:
    """The state of mmengine's message hub with tensors for its logs and Python's numbers for numpy's."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        log, count = map(torch.from_numpy, value.data)
        return {"log_history": log, "count_history": count, "max_length": value.max_length}

    return apply_to(hub, lambda value: isinstance(value, (HistoryBuffer, np.generic)), plain)


def from_plain(hub: Any) -> None:
    """Undo :func:`to_plain`, in place."""
    scalars = hub["log_scalars"] if isinstance(hub, dict) else {}
    for name, log in scalars.items():
        if isinstance(log, dict):
            arrays = {k: v.cpu().numpy() if torch.is_tensor(v) else v for k, v in log.items()}
            scalars[name] = HistoryBuffer(**arrays)


def last_checkpoint(work_dir: Path) -> Path | None:
    """The file that mmengine's note names, in a folder that may have moved; None without a note."""
    note = work_dir / "last_checkpoint"
    if not note.is_file():
        return None
    written = Path(note.read_text(encoding="utf-8").strip())
    here = work_dir / written.name
    return here if here.is_file() else written


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """mmengine's loader of local files, with errors that say what can be done.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is damaged, or torch does not read it without trusting it.
    """
    path = os.path.expanduser(filename)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{filename} can not be found.")
    earlier = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())
    try:
        with earlier(_EARLIER):
            return torch.load(path, map_location=map_location)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if not isinstance(error, pickle.UnpicklingError) or not zipfile.is_zipfile(path):
            raise DataError(f"{filename} is damaged or no checkpoint: {error}") from error
        raise DataError(
            f"{filename} holds Python objects, such as the log of an MMSegmentation training without "
            "DMFHook; reading them can run any code, so torch >= 2.6 refuses. If you trust the file, "
            "set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 for this command, or keep its network alone:\n"
            '  python -c "import sys, torch; c = torch.load(sys.argv[1], weights_only=False); '
            "torch.save({'state_dict': c['state_dict']}, sys.argv[2])\" "
            f"{shlex.quote(filename)} network.pth"
        ) from error
