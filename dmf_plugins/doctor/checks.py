"""The checks, in the order a reader fixes things."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from packaging.version import Version

from dmf_plugins.doctor.interpreter import Interpreter, ProbeError

Status = Literal["ok", "warning", "error", "skipped"]
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
BUILD_MMCV = (
    "pip install 'setuptools<81' wheel ninja psutil && pip uninstall -y mmcv mmcv-lite && "
    "MMCV_WITH_OPS=1 CFLAGS='-g0 -O3' pip install --no-build-isolation --no-cache-dir 'mmcv==2.1.0'"
)
# nnU-Net looks for trainers in its own package alone before 2.8
COPY_TRAINERS = (
    'cp "$(dmf paths --nnunet)/dmf.py" '
    "\"$(python -c 'import nnunetv2; print(*nnunetv2.__path__)')/training/nnUNetTrainer/variants\""
)


@dataclass(frozen=True)
class Finding:
    """Result of one check; ``fix`` is a command, or what to do."""

    check: str
    status: Status
    detail: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Run every check, one after the other."""
    with Interpreter() as python:
        yield from _python()
        for check in (_torch, _torchvision, _gpu, _nnunet, _mmseg):
            yield from check(python)
    yield from _work_folder()


def is_broken(findings: list[Finding]) -> bool:
    """Whether something needs fixing."""
    return any(finding.status == "error" for finding in findings)


def _ask(
    python: Interpreter, check: str, code: str, fix: str, failure: str = "", found: str = "{}"
) -> Finding:
    """What the last line that ``code`` prints says, put into ``found``, or its failure."""
    try:
        return Finding(check, "ok", found.format(python.run(code).splitlines()[-1]))
    except ProbeError as error:
        return Finding(check, "error", f"{failure}{error}", fix)


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", "ok", f"{found} ({sys.executable})")


def _torch(python: Interpreter) -> Iterator[Finding]:
    if not installed("torch"):
        yield Finding("torch", "error", "not installed", "pip install torch")
        return
    code = "import torch; print(torch.__version__)"
    yield _ask(python, "torch", code, "pip install --force-reinstall torch")


def _torchvision(python: Interpreter) -> Iterator[Finding]:
    """mmengine's runner and timm import it; one built for another torch fails at import."""
    if not installed("torchvision"):
        yield Finding("torchvision", "skipped", "not installed")
        return
    code = "import torchvision; print(torchvision.__version__)"
    fix = "pip install --force-reinstall torch torchvision  # both from one place, both CPU or CUDA"
    failure = f"does not fit the installed torch {installed('torch')}: "
    yield _ask(python, "torchvision", code, fix, failure)


def _gpu(python: Interpreter) -> Iterator[Finding]:
    if not installed("torch"):
        return
    code = (
        "import torch\n"
        "n = torch.cuda.device_count() if torch.cuda.is_available() else 0\n"
        "mps = getattr(torch.backends, 'mps', None)\n"
        "print(', '.join(torch.cuda.get_device_name(i) for i in range(n)) or "
        "('Apple MPS' if mps and mps.is_available() else ''), torch.version.cuda or '', sep='|')"
    )
    try:
        names, _, cuda = python.run(code).partition("|")
    except ProbeError as error:
        yield Finding("GPU", "warning", str(error), "nvidia-smi")
        return
    if names:
        yield Finding("GPU", "ok", f"{names}{f' (CUDA {cuda})' if cuda else ''}")
    elif cuda:
        detail = f"torch is built for CUDA {cuda} but sees no GPU; training runs on the CPU"
        yield Finding("GPU", "warning", detail, "nvidia-smi  # shows whether the driver works")
    else:
        yield Finding("GPU", "warning", "torch is a CPU build; training runs on the CPU")


def _nnunet(python: Interpreter) -> Iterator[Finding]:
    found = installed("nnunetv2")
    if not found:
        yield Finding(
            "nnU-Net", "skipped", "not installed", "pip install 'dmf-plugins[nnunet]'  # if wanted"
        )
        return
    if Version(found) < Version("2.6"):
        yield Finding("nnU-Net", "error", f"{found} is too old", "pip install -U nnunetv2")
        return
    code = f"import nnunetv2; print('{found}')"
    answer = _ask(python, "nnU-Net", code, "pip install -U nnunetv2", f"{found}: ")
    yield answer
    if answer.status == "ok":
        yield from _nnunet_folders()
        yield from _nnunet_trainers(python, knows_variable=Version(found) >= Version("2.8"))


def _nnunet_folders() -> Iterator[Finding]:
    unset = [name for name in NNUNET_FOLDERS if not os.environ.get(name)]
    # nobody who works with MMSegmentation alone sets any; to set some is a mistake
    status: Status = "warning" if len(unset) == len(NNUNET_FOLDERS) else "error"
    for name in NNUNET_FOLDERS:
        fix = f"export {name}=/path/to/{name}"
        if name in unset:
            yield Finding(name, status, "not set; nnU-Net's commands need it", fix)
            continue
        folder = Path(os.environ[name])
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            yield Finding(name, "error", f"{there} is not a folder", fix)
        elif not _writable(there):
            yield Finding(name, "error", f"{there} cannot be written", fix)
        else:
            later = "" if there == folder else ", made when it is needed"
            yield Finding(name, "ok", f"{folder}{later}")


def _nnunet_trainers(python: Interpreter, knows_variable: bool) -> Iterator[Finding]:
    name, fix = "nnU-Net's trainers", COPY_TRAINERS
    if knows_variable:
        name, fix = "nnUNet_extTrainer", 'export nnUNet_extTrainer="$(dmf paths --nnunet)"'
        value = os.environ.get(name)
        if not value:
            in_use = any(os.environ.get(folder) for folder in NNUNET_FOLDERS)
            detail = "not set; nnU-Net does not find the trainers"
            yield Finding(name, "error" if in_use else "warning", detail, fix)
            return
        absent = [part for part in value.split(os.pathsep) if part and not Path(part).is_dir()]
        if absent:
            yield Finding(name, "error", f"{absent[0]} is not a folder", fix)
            return
    code = (
        "from dmf_plugins.nnunet.finder import find_trainer\n"
        "found = find_trainer('nnUNetTrainerDMF')\n"
        "assert found, 'no module there has it'\n"
        "print(found.__module__)"
    )
    failure = "nnU-Net does not find nnUNetTrainerDMF: "
    yield _ask(python, name, code, fix, failure, "nnUNetTrainerDMF found ({})")


def _mmseg(python: Interpreter) -> Iterator[Finding]:
    names = ("mmengine", "mmsegmentation", "onedl-mmengine", "onedl-mmsegmentation")
    if not any(map(installed, names)):
        yield Finding(
            "MMSegmentation", "skipped", "not installed",
            "pip install 'dmf-plugins[mmseg]'  # if wanted, after mmcv, see the README",
        )  # fmt: skip
        return
    mmcv = list(_mmcv(python))
    yield from mmcv
    for module in ("ftfy", "regex"):
        if not importlib.util.find_spec(module):
            detail = "not installed; mmsegmentation imports it without saying so"
            yield Finding(module, "error", detail, "pip install ftfy regex")
            return
    if any(finding.status == "error" for finding in mmcv):
        yield Finding("MMSegmentation", "skipped", "mmcv has to work first")
        return
    code = (
        "import mmseg, dmf_plugins.mmseg\n"
        "from mmseg.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS\n"
        "wanted = ((MODELS, 'DMFLoss'), (HOOKS, 'DMFHook'), (METRICS, 'DMFMetric'),\n"
        "          (DATASETS, 'BreastUltrasoundDataset'), (TRANSFORMS, 'BilateralFilter'))\n"
        "lost = [name for registry, name in wanted if registry.get(name) is None]\n"
        "assert not lost, f'not registered: {lost}'\n"
        "print(mmseg.__version__)"
    )
    fix, detail = (
        "pip install -U 'dmf-plugins[mmseg]'",
        "{}; DMFLoss, DMFHook and the others are registered",
    )
    yield _ask(python, "MMSegmentation", code, fix, found=detail)


def _mmcv(python: Interpreter) -> Iterator[Finding]:
    if installed("mmcv-lite"):
        yield Finding("mmcv", "error", "mmcv-lite lacks what mmsegmentation needs", BUILD_MMCV)
        return
    if not importlib.util.find_spec("mmcv"):
        yield Finding("mmcv", "error", "not installed", BUILD_MMCV)
        return
    answer = _ask(python, "mmcv", "import mmcv; print(mmcv.__version__)", BUILD_MMCV)
    if answer.status != "ok":
        yield answer
        return
    found = answer.detail
    if installed("mmsegmentation") and Version(found) >= Version("2.2.0"):
        detail = f"{found} is refused by mmsegmentation {installed('mmsegmentation')}"
        yield Finding("mmcv", "error", detail, BUILD_MMCV)
        return
    try:
        python.run("import mmcv.ops")
    except ProbeError as error:
        detail = f"{found} was built without its operators (_ext), or for another torch: {error}"
        if installed("onedl-mmcv"):  # whose mmsegmentation does without, but for some models
            fix = "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary :all: onedl-mmcv"
            yield Finding("mmcv", "warning", detail, f"{fix}  # if a model asks for them")
        else:
            yield Finding("mmcv", "error", detail, BUILD_MMCV)
        return
    yield Finding("mmcv", "ok", f"{found}, with its operators")


def _work_folder() -> Iterator[Finding]:
    here = Path.cwd()
    if _writable(here):
        yield Finding("folder", "ok", f"{here} can be written")
    else:
        yield Finding(
            "folder", "warning", f"{here} cannot be written", "cd to a folder of your own"
        )


def installed(package: str) -> str:
    """Version of an installed distribution, empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _writable(folder: Path) -> bool:
    probe_file = folder / f".dmf-doctor-{os.getpid()}"
    try:
        probe_file.touch()
        probe_file.unlink()
    except OSError:
        return False
    return True


def as_json(findings: list[Finding]) -> str:
    """All findings and the verdict, for scripts."""
    content = {
        "broken": is_broken(findings),
        "findings": [vars(finding) for finding in findings],
    }
    return json.dumps(content, indent=2)
