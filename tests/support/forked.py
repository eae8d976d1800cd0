"""Python commands forked from one process that has imported what is slow to import.

Processes like any other, to be killed and to print what they like, without the ten seconds that
torch and the rest take to import; their own pools are forked too. The commands of the README are
run as they are. Nothing of ours is imported here: PYTHONPATH decides as always.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import sysconfig
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

# what nnU-Net and MMSegmentation import, not they: before 2.8 nnU-Net reads variables as it is imported
SLOW_TO_IMPORT = [
    "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard", "torchvision", "pandas",
    "scipy.stats", "scipy.ndimage", "scipy.optimize", "skimage.morphology", "skimage.transform",
    "matplotlib.pyplot", "seaborn", "cv2", "sklearn.model_selection", "SimpleITK", "nibabel",
    "batchgenerators", "batchgeneratorsv2", "blosc2", "dynamic_network_architectures", "timm",
    "mmcv.ops", "mmcv.transforms", "mmengine.runner", "mmengine.visualization",
]  # fmt: skip

SERVER = multiprocessing.get_context("forkserver")
FORK = multiprocessing.get_context("fork")


def fork_context(method: str | None = None) -> multiprocessing.context.BaseContext:
    """For ``multiprocessing.get_context``: a pool that is spawned imports everything again."""
    return FORK


def forked(
    *command: object, cwd: Path | None = None, code: int | None = 0, **environment: str
) -> str:
    """What such a command prints, once it has ended; ``code`` is how it must end, None anyhow."""
    with tempfile.NamedTemporaryFile() as output:
        process = fork(*command, cwd=cwd, output=output.name, **environment)
        process.join()
        text = Path(output.name).read_text(encoding="utf-8", errors="replace")
    assert code in (None, process.exitcode), text[-4000:]
    return text


def fork(
    *command: object, cwd: Path | None, output: str, **environment: str
) -> multiprocessing.process.BaseProcess:
    """Start an installed script by its name, ``-m module``, ``-c code`` or a Python file."""
    SERVER.set_forkserver_preload(SLOW_TO_IMPORT)
    words = [str(word) for word in command]
    settings = {**os.environ, **environment}
    process = SERVER.Process(target=_child, args=(words, cwd or Path.cwd(), settings, output))
    process.start()
    return process


def _child(command: list[str], cwd: Path, environment: dict[str, str], output: str) -> None:
    stream = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(stream, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # it is this process's own otherwise
    multiprocessing.get_context = fork_context
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    name, *sys.argv[1:] = command
    if name in ("-m", "-c"):
        text = sys.argv.pop(1)
        if name == "-m":
            runpy.run_module(text, run_name="__main__", alter_sys=True)
        else:
            exec(text, {"__name__": "__main__"})
    elif name.endswith(".py"):
        sys.argv[0] = name
        sys.path.insert(0, os.path.dirname(os.path.abspath(name)))
        runpy.run_path(name, run_name="__main__")
    else:
        sys.argv[0] = os.path.join(sysconfig.get_path("scripts"), name)
        (script,) = entry_points(group="console_scripts", name=name)
        sys.exit(script.load()())
