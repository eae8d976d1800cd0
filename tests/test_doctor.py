"""``dmf doctor`` in this environment and in ones that are broken on purpose."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from dmf_plugins.doctor import Finding, installed
from dmf_plugins.doctor.interpreter import Interpreter, ProbeError
from dmf_plugins.paths import bundled

from .test_cli import dmf

pytestmark = pytest.mark.slow
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def findings(**environment: str) -> tuple[int, dict[str, Finding]]:
    result = dmf("doctor", "--json", **environment)
    content = json.loads(result.stdout)
    assert content["broken"] == (result.returncode == 1)
    return result.returncode, {f["check"]: Finding(**f) for f in content["findings"]}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    return {name: str(tmp_path / name) for name in FOLDERS}


def test_a_sound_environment_with_nnunet_set_up(folders):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    ours = str(bundled("nnunet_trainers"))
    code, found = findings(**folders, nnUNet_extTrainer=ours)
    assert code == 0, found
    assert {"Python", "torch", "torchvision", "nnU-Net", "folder"} <= set(found)
    assert sys.version.split()[0] in found["Python"].detail
    assert (
        found["nnUNet_extTrainer"].detail == "nnUNetTrainerDMF found (dmf_plugins.nnunet.trainers)"
    )
    if installed("mmsegmentation"):
        assert "registered" in found["MMSegmentation"].detail
        assert "with its operators" in found["mmcv"].detail


def test_nnunet_variables_that_are_wrong(folders, tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    del folders["nnUNet_results"]
    folders["nnUNet_raw"] = str(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    code, found = findings(**folders, nnUNet_extTrainer=str(tmp_path / "empty"))
    assert code == 1
    assert (found["nnUNet_results"].status, found["nnUNet_raw"].status) == ("error", "error")
    assert found["nnUNet_raw"].fix == f"mkdir -p '{tmp_path / 'gone'}'"
    assert found["nnUNet_preprocessed"].status == "ok"
    assert "does not find nnUNetTrainerDMF" in found["nnUNet_extTrainer"].detail
    assert "dmf paths --nnunet" in found["nnUNet_extTrainer"].fix


def shadow(package: str, target: Path, without: str) -> str:
    """The installed package again in ``target``, by links, but for some files; for PYTHONPATH."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    (target / package).mkdir(parents=True)
    for path in source.iterdir():
        if not path.match(without):
            (target / package / path.name).symlink_to(path)
    return str(target)


def test_mmcv_without_its_operators(tmp_path):
    pytest.importorskip("mmcv.ops", reason="MMSegmentation is not installed")
    code, found = findings(PYTHONPATH=shadow("mmcv", tmp_path, "_ext*"))
    assert code == 1
    assert "_ext" in found["mmcv"].detail
    assert "--no-build-isolation" in found["mmcv"].fix
    assert found["MMSegmentation"].status == "skipped"


def test_mmcv_too_new_for_mmseg(tmp_path):
    pytest.importorskip("mmcv.ops", reason="MMSegmentation is not installed")
    path = shadow("mmcv", tmp_path, "version.py")
    (tmp_path / "mmcv" / "version.py").write_text(
        "__all__ = ['__version__', 'version_info', 'parse_version_info']\n"
        "__version__ = '2.2.0'\nversion_info = (2, 2, 0)\n"
        "def parse_version_info(v, length=4): return version_info\n"
    )
    code, found = findings(PYTHONPATH=path)
    assert code == 1
    assert "2.2.0 is refused by mmsegmentation" in found["mmcv"].detail
    assert "mmcv==2.1.0" in found["mmcv"].fix


def test_a_torchvision_of_another_torch(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision_absent::nms')(lambda: None)\n"
        "torch.ops.torchvision_absent.nms\n"
    )
    code, found = findings(PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "torchvision_absent::nms does not exist" in found["torchvision"].detail
    assert "torch torchvision" in found["torchvision"].fix


def test_an_environment_with_neither_framework(tmp_path):
    """A fresh interpreter that sees this package and no other."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = tmp_path / "site"
    site.mkdir()
    import packaging

    import dmf_plugins

    for module in (dmf_plugins, packaging):
        folder = Path(module.__file__).parent
        (site / folder.name).symlink_to(folder)
    code = "from dmf_plugins.doctor import as_json, examine; print(as_json(list(examine())))"
    result = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    found = {f["check"]: f for f in json.loads(result.stdout)["findings"]}
    assert (found["torch"]["status"], found["torch"]["fix"]) == ("error", "pip install torch")
    for name, extra in (("nnU-Net", "nnunet"), ("MMSegmentation", "mmseg")):
        assert found[name]["status"] == "skipped"
        assert f"pip install 'dmf-plugins[{extra}]'" in found[name]["fix"]


def test_the_text_names_the_command_that_mends(tmp_path):
    result = dmf("doctor", nnUNet_raw=str(tmp_path))
    assert "Traceback" not in result.stderr
    if installed("nnunetv2"):
        assert result.returncode == 1
        assert "export nnUNet_results=" in result.stdout
        assert "ERROR" in result.stdout


def test_a_probe_that_crashes_or_fails_spoils_no_other(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text(
        "import sys\nsys.modules['left'] = sys\nraise OSError('bad\\nfile')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Interpreter() as python:
        assert (
            python.run("import os, json; print('noise'); os.write(1, b'raw'); print(1)")
            == "noise\n1"
        )
        with pytest.raises(ProbeError, match="bad"):
            python.run("import half")
        with pytest.raises(ProbeError, match="No module named 'left'"):
            python.run("import left")
        with pytest.raises(ProbeError, match=r"ended with code .*: last words"):
            python.run(
                "import os, sys; print('last words', file=sys.stderr, flush=True); os.abort()"
            )
        assert python.run("print('alive')") == "alive"
