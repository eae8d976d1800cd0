"""What is published: source and wheel hold what they need, and say the same everywhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from dmf_plugins import __version__

from .support.commands import run

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="the tests run without the source"
)


def python(*arguments: object, cwd: Path, **environment: str) -> str:
    return run(sys.executable, *arguments, cwd=cwd, **environment).strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist, with the wheel built from it in ``dist/``."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("sdist")
    python("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / f"dmf_plugins-{__version__}"
    python("-m", "hatchling", "build", "-t", "wheel", "-d", unpacked / "dist", cwd=unpacked)
    return unpacked


@pytest.mark.slow
def test_the_wheel_works_away_from_its_source(source, tmp_path):
    (wheel,) = (source / "dist").glob("*.whl")
    site = tmp_path / "site"
    python("-m", "pip", "install", "--no-index", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    tops = {path.name for path in site.iterdir()}
    assert tops == {"bin", "dmf_plugins", f"dmf_plugins-{__version__}.dist-info"}
    assert (site / "dmf_plugins/py.typed").exists()
    for folder, file in (("nnunet", "dmf.py"), ("mmseg", "_base_/default_runtime.py")):
        printed = python(
            "-m", "dmf_plugins", "paths", f"--{folder}", cwd=tmp_path, PYTHONPATH=str(site)
        )
        assert printed.startswith(str(site))
        assert (Path(printed) / file).exists()


@pytest.mark.slow
def test_the_source_holds_what_its_tests_need(source):
    python(
        "-m",
        "pytest",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        cwd=source,
        PYTHONPATH=str(source),
    )


@pytest.mark.slow
def test_an_index_takes_both(source):
    pytest.importorskip("twine", reason="twine is not installed")
    files = [*source.glob("dist/*.whl"), *source.parent.glob("*.tar.gz")]
    assert len(files) == 2
    python("-m", "twine", "check", "--strict", *files, cwd=source)


def test_an_index_shows_no_dead_link():
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    text = "![a](docs/a.png)\n\nSee [docs/x.md](docs/x.md#part), [here](#here), [it](https://doi.org/1)."
    kept = ", [here](#here), [it](https://doi.org/1)."
    assert hook.for_index(text, None) == "See docs/x.md" + kept
    source = "https://example.org/p"
    assert hook.for_index(text, source) == (
        f"![a]({source}/raw/HEAD/docs/a.png)\n\nSee [docs/x.md]({source}/blob/HEAD/docs/x.md#part)"
        + kept
    )
    readme = hook.for_index((ROOT / "README.md").read_text(encoding="utf-8"), None)
    assert not re.findall(r"\]\((?!https:|#)", readme)


def test_every_place_names_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert newest.groups() == (
        __version__,
        re.search(r"date-released: (.*)", citation)[1],
    )
    assert f"\nversion: {__version__}\n" in citation


def test_the_model_index_lists_every_config():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    (entry,) = yaml.safe_load((ROOT / "model-index.yml").read_text(encoding="utf-8"))["Import"]
    index = yaml.safe_load((ROOT / entry).read_text(encoding="utf-8"))
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "mmseg_configs").glob("*.py")}
    assert {model["Config"] for model in index["Models"]} == configs
    assert {model["In Collection"] for model in index["Models"]} == {
        collection["Name"] for collection in index["Collections"]
    }
    assert all(model["Name"] == Path(model["Config"]).stem for model in index["Models"])


def test_a_failed_step_of_the_setup_shows_its_end_and_how_to_go_on(tmp_path):
    if shutil.which("make") is None or shutil.which("c++") is None:
        pytest.skip("make and a C++ compiler are not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    failing = (
        "#!/bin/sh\n[ $1 = -c ] && echo tag && exit\nseq 30; echo '  [1/2] c++ x.cpp'; exit 1\n"
    )
    for name, script in (("uv", "#!/bin/sh\n"), ("python", failing)):
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    (tmp_path / ".venv" / ".nnunet").touch()
    said = run("make", ".venv/.mmcv", cwd=tmp_path, code=2, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "\n  mmcv [1/2]\n12\n13\n" in said
    assert "repeat the same make" in said
    assert len(list((tmp_path / "cache/dmf_plugins").glob("mmcv-2.1.0-tag-torch==*.log"))) == 1
    assert not (tmp_path / ".venv" / ".mmcv").exists()
