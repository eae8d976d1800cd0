"""Cells as jobs of a cluster, through submitit."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from dmf_plugins.errors import DMFError, UsageError
from dmf_plugins.trials import cluster
from dmf_plugins.trials.engine import RESULT
from dmf_plugins.trials.plan import TrialPlan

from .conftest import free_port

pytest.importorskip("submitit", reason="submitit is not installed")


def plan(output: Path) -> TrialPlan:
    return TrialPlan(output=output, framework="nnunet", settings={"a": {}, "b": {}}, seeds=[0, 1])


@pytest.mark.slow
def test_every_unfinished_cell_runs_though_others_fail(tmp_path):
    """The plan is not stored, so each cell's own process ends with that message in the cell's log."""
    trial = plan(tmp_path)
    done, *others = trial.cells()
    done.folder.mkdir(parents=True)
    (done.folder / RESULT).write_text("{}")
    with pytest.raises(DMFError, match=r"3 of 3 cells failed; see .*b/fold0\.log"):
        cluster.submit(trial, "debug", 2, {"partition": "gpu", "gpus": "1"})
    assert not done.log.exists()
    assert all("holds no trial" in cell.log.read_text() for cell in others)


def test_a_job_that_runs_out_of_time_is_queued_as_it_is(tmp_path):
    job = cluster.Job((sys.executable, "-c", "print('ran')"), tmp_path / "setting" / "fold0.log")
    again = job.checkpoint()
    assert again.function is job
    again.result()
    assert job.log.read_text() == "ran\n"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lsf", {}, "slurm or debug, got 'lsf'"),
        ("slurm", {"time": "1:00:00"}, "--slurm time must be minutes, got '1:00:00'"),
        ("slurm", {}, "--cluster slurm: .*--jobs suits any other scheduler"),
    ],
)
def test_what_a_cluster_refuses_is_explained(tmp_path, monkeypatch, name, options, message):
    monkeypatch.setenv("PATH", os.devnull)  # no srun
    with pytest.raises(UsageError, match=message):
        cluster.submit(plan(tmp_path), name, 1, options)


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="SLURM is not installed")
def test_a_cluster_that_does_not_answer_is_named_with_its_message(tmp_path, monkeypatch):
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        f"ClusterName=x\nSlurmctldHost=x(127.0.0.1)\nSlurmctldPort={free_port()}\nAuthType=auth/none\n"
        "MessageTimeout=2\nNodeName=x\nPartitionName=x Nodes=x Default=YES\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(conf))
    with pytest.raises(DMFError, match=r"did not take the jobs: .*Unable to contact slurm"):
        cluster.submit(plan(tmp_path), "slurm", 2, {})
