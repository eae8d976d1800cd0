"""A second interpreter, for imports that may fail, print, or crash."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from typing import Any

_TIMEOUT = 300  # seconds an answer may take
# answers go where stdout went; whatever the imports print goes to stderr
_LOOP = """
import contextlib, io, json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
for line in sys.stdin:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(json.loads(line), {"__name__": "probe"})
        answer = [True, printed.getvalue().strip()]
    except BaseException as error:
        answer = [False, traceback.format_exception_only(type(error), error)[-1].strip()]
    print(json.dumps(answer), file=answers, flush=True)
"""


class ProbeError(Exception):
    """What a probe ended with, in one line."""


class Interpreter:
    """Runs pieces of code, one after the other, in a process of this environment.

    What one piece has imported is there for the next, which makes a dozen of them affordable. After
    one that failed the process is replaced, so that no half-imported package harms what follows.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: Any = None

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def run(self, code: str) -> str:
        """What ``code`` prints.

        Raises:
            ProbeError: it failed, crashed, or did not end within five minutes.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(_TIMEOUT, process.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(code) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if line:
            succeeded, text = json.loads(line)
            if succeeded:
                return str(text)
        elif late:
            text = f"no answer within {_TIMEOUT} s"
        else:
            self._errors.seek(0)
            said = [entry for entry in self._errors.read().splitlines() if entry.strip()]
            text = f"the interpreter ended with code {process.wait()}"
            text += f": {said[-1]}" if said else ""
        self._stop()
        raise ProbeError(text)

    def _start(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        return self._process

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None
        self._errors.close()


def collect_env() -> str:
    """What torch reports about the machine, or why it could not."""
    command = [sys.executable, "-m", "torch.utils.collect_env"]
    report = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return report.stdout.strip()
