"""``dmf doctor`` in this environment and in ones that are broken on purpose."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmf_plugins.cli import app
from dmf_plugins.doctor import Finding, checks, installed, is_broken
from dmf_plugins.doctor.interpreter import Interpreter, ProbeError
from dmf_plugins.errors import UsageError
from dmf_plugins.paths import bundled

from .support.commands import dmf

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Answers(Interpreter):
    """Answers without running anything; what holds one of ``failing``'s keys fails with its text."""

    def __init__(self, **failing: str) -> None:
        super().__init__()
        self.failing = failing

    def run(self, code: str) -> str:
        for part, text in self.failing.items():
            if part in code:
                raise ProbeError(text)
        return "2.1.0"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """nnU-Net's folders and trainers set as they should be."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(bundled("nnunet_trainers")))
    return monkeypatch


def named(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


@pytest.mark.slow
def test_a_sound_environment(environment):
    """All of it for real, through the command."""
    nnunet = {name: os.environ[name] for name in (*FOLDERS, "nnUNet_extTrainer")}
    result = dmf("doctor", "--json", **nnunet)
    content = json.loads(result.stdout)
    found = named(Finding(**finding) for finding in content["findings"])
    assert (result.returncode, content["broken"]) == (0, False), found
    assert {"Python", "torch", "torchvision", "nnU-Net", "folder"} <= set(found)
    assert sys.version.split()[0] in found["Python"].detail
    if installed("nnunetv2"):
        trainers = found.get("nnUNet_extTrainer") or found["nnU-Net's trainers"]
        assert trainers.detail == "nnUNetTrainerDMF found (dmf_plugins.nnunet.trainers)"
    if installed("mmsegmentation"):
        assert "registered" in found["MMSegmentation"].detail
        assert "with its operators" in found["mmcv"].detail


def test_nnunet_variables_that_are_wrong(environment, tmp_path):
    environment.delenv("nnUNet_raw")
    environment.setenv("nnUNet_preprocessed", str(tmp_path / "file" / "deep"))
    environment.setenv("nnUNet_results", str(tmp_path / "later" / "deep"))
    (tmp_path / "file").touch()
    found = named(checks._nnunet_folders())
    assert [found[name].status for name in FOLDERS] == ["error", "error", "ok"]
    assert found["nnUNet_raw"].fix.startswith("export nnUNet_raw=")
    assert found["nnUNet_preprocessed"].detail == f"{tmp_path / 'file'} is not a folder"
    assert found["nnUNet_results"].detail.endswith("deep, made when it is needed")

    python = Answers(find_trainer="AssertionError: no module there has it")
    (found,) = checks._nnunet_trainers(python, knows_variable=True)
    assert "does not find nnUNetTrainerDMF: AssertionError: no module" in found.detail
    assert found.fix == 'export nnUNet_extTrainer="$(dmf paths --nnunet)"'
    for value in ("", str(tmp_path / "gone")):
        environment.setenv("nnUNet_extTrainer", value)
        (found,) = checks._nnunet_trainers(Answers(), knows_variable=True)
        assert found.status == "error"
        assert found.fix == 'export nnUNet_extTrainer="$(dmf paths --nnunet)"'


def test_an_nnunet_that_does_not_know_the_variable(environment):
    environment.setattr(checks, "installed", lambda package: "2.7.0")
    environment.delenv("nnUNet_extTrainer")
    found = named(checks._nnunet(Answers(find_trainer="AssertionError")))
    assert found["nnU-Net"].status == "ok"
    assert found["nnU-Net's trainers"].status == "error"
    assert 'cp "$(dmf paths --nnunet)/dmf.py"' in found["nnU-Net's trainers"].fix
    assert is_broken(list(found.values()))
    assert not is_broken(list(checks._nnunet(Answers())))


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


@pytest.mark.slow
def test_mmcv_without_its_operators(tmp_path, monkeypatch):
    if not (installed("mmcv") and installed("mmsegmentation")):
        pytest.skip("MMSegmentation is not installed")
    monkeypatch.setenv("PYTHONPATH", shadow("mmcv", tmp_path, "_ext*"))
    with Interpreter() as python:
        found = named(checks._mmseg(python))
    assert found["mmcv"].status == "error"
    assert "_ext" in found["mmcv"].detail
    assert "--no-build-isolation" in found["mmcv"].fix
    assert found["MMSegmentation"].status == "skipped"


def test_mmcv_too_new_for_mmseg(monkeypatch):
    monkeypatch.setattr(checks, "installed", lambda package: "" if "-" in package else "1.2.2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(Answers, "run", lambda self, code: "2.2.0")
    found = named(checks._mmseg(Answers()))
    assert "2.2.0 is refused by mmsegmentation" in found["mmcv"].detail
    assert "mmcv==2.1.0" in found["mmcv"].fix


@pytest.mark.slow
def test_a_torchvision_of_another_torch(tmp_path, monkeypatch):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision_absent::nms')(lambda: None)\n"
        "torch.ops.torchvision_absent.nms\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Interpreter() as python:
        (found,) = checks._torchvision(python)
    assert found.status == "error"
    assert "torchvision_absent::nms does not exist" in found.detail
    assert "torch torchvision" in found.fix


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


def test_the_text_names_the_command_that_fixes(environment):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    environment.setattr(checks, "Interpreter", Answers)
    environment.delenv("nnUNet_results")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "ERROR    nnUNet_results: not set" in result.output
    assert "export nnUNet_results=" in result.output


@pytest.mark.slow
def test_torchs_report_on_the_machine_is_added_on_request(environment):
    environment.setattr(checks, "Interpreter", Answers)
    shown = CliRunner().invoke(app, ["doctor", "--env"]).output
    assert shown.index("MMSegmentation") < shown.index("Is debug build") < shown.index("OS: ")
    refused = CliRunner().invoke(app, ["doctor", "--env", "--json"]).exception
    assert isinstance(refused, UsageError)


def test_a_probe_that_crashes_or_fails_harms_no_other(tmp_path, monkeypatch):
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
