"""Fixtures shared by all tests. Data outside the repository is optional and never required."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .support.mmseg import mmseg_environment  # noqa: F401  a fixture
from .support.nnunet import workspace  # noqa: F401  a fixture

settings.register_profile(
    "default",
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
settings.load_profile("default")

# the files that take longest, longest first: the last file to begin must be a short one
LONG = (
    "test_readme.py", "test_nnunet.py", "test_runner.py", "test_trial_mmseg.py",
    "test_notebook.py", "test_trial_nnunet.py", "test_trial_slurm.py", "test_package.py",
    "test_fusion.py", "test_grid.py", "test_compiled.py", "test_resume.py", "test_distributed.py",
    "test_export.py", "test_dmf_loss.py", "test_fusion_golden.py", "test_doctor.py",
    "test_configs.py", "test_trial_cluster.py", "test_readers.py", "test_evaluate.py",
    "test_data.py", "test_hostile.py", "test_targets.py", "test_faults.py", "test_messages.py",
    "test_losses.py",
)  # fmt: skip
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist would begin with the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))


def shared(relative: str) -> Path:
    """A file of the optional shared folder; the test is skipped where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"optional data {relative} is not on this machine")
    return path


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set in BUSI's layout: 14 benign, 8 malignant, 3 normal, small images."""
    from dmf_plugins.data.phantom import generate_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    return generate_phantoms(folder, benign=14, malignant=8, normal=3, side=(60, 76), seed=3)
