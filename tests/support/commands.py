"""Commands as the tests run them: ``dmf`` in this process, others in a process of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from dmf_plugins.cli import main
from dmf_plugins.trials.plan import EPOCH

from .forked import fork

DMF = Path(sysconfig.get_path("scripts")) / "dmf"


def dmf(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``dmf`` through its entry point in this process, with no variable of nnU-Net but those given."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code = 0
    with (
        mock.patch.dict(os.environ, {**own, "COLUMNS": "200", **environment}, clear=True),
        mock.patch.multiple(sys, stdout=output, stderr=errors, excepthook=sys.excepthook),
        mock.patch.object(sys, "argv", ["dmf", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    texts = []
    for stream in (output, errors):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(arguments, code, *texts)


def run(*command: object, cwd: Path | None = None, code: int | None = 0, **environment: str) -> str:
    """What a command in a process of its own prints; ``code`` is how it must end, None anyhow."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert code in (None, result.returncode), result.stdout[-4000:]
    return result.stdout


def kill_in_training(framework: str, cell: Path, **environment: str) -> None:
    """Begin a cell of a trial in a process of its own and kill it after its first epoch."""
    output, name = cell.parents[2], f"{cell.parent.name}/{cell.name}"
    process = fork(
        *("dmf", "trial", framework, "--output", output, "--cell", name),
        cwd=None, output=str(output / "killed.log"), **environment,
    )  # fmt: skip
    wait(lambda: (cell / EPOCH).exists() or not process.is_alive(), 240)
    assert process.is_alive(), (output / "killed.log").read_text()[-3000:]
    process.kill()
    process.join()


def wait(condition: Callable[[], object], seconds: float) -> bool:
    """Whether ``condition`` came true within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
