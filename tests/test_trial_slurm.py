"""Cells on a SLURM of one node, which this test starts, where that is possible."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="submitit is not installed")
pytest.importorskip("mmseg.models", reason="MMSegmentation does not work", exc_type=ImportError)

from dmf_plugins.trials.plan import TrialPlan

from .conftest import free_port
from .support.commands import wait
from .support.mmseg import TINY, command

pytestmark = pytest.mark.slow
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The variables by which commands find a SLURM of this machine alone."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} of SLURM not installed (Debian: slurm-wlm, munge)")
    if os.getuid() != 0:
        pytest.skip("only root may start SLURM's daemons")
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)  # short, since sockets have short names
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o400)
        (folder / "slurm.conf").write_text(
            CONF.format(
                host=socket.gethostname().split(".")[0],
                controller=free_port(),
                daemon=free_port(),
                folder=folder,
            )
        )
        variables = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        munge = [f"--{k}={folder}/munge.{v}" for k, v in (
            ("key-file", "key"), ("socket", "sock"), ("pid-file", "pid"), ("log-file", "log"),
            ("seed-file", "seed"),
        )]  # fmt: skip
        log = daemons.enter_context((folder / "log").open("wb"))
        for program in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-c"],
        ):
            process = subprocess.Popen(program, env=variables, stdout=log, stderr=log)
            daemons.callback(process.wait)
            daemons.callback(process.send_signal, signal.SIGTERM)
            wait((folder / "munge.sock").exists, 5)
        if not wait(lambda: "idle" in run("sinfo", "-h", "-o", "%T", env=variables), 30):
            logs = "".join(p.read_text()[-800:] for p in folder.glob("*log"))
            pytest.skip(f"SLURM does not start here: {logs}")
        daemons.callback(wait, lambda: not run("squeue", "-h", env=variables), 30)
        daemons.callback(run, "scancel", "--name", "dmf", env=variables)  # first, daemons last
        yield variables


def run(*arguments: str, env: dict[str, str]) -> str:
    return subprocess.run(arguments, env=env, capture_output=True, text=True, check=False).stdout


def test_cells_that_are_cancelled_requeued_or_run_out_of_time_continue(
    slurm, mmseg_environment, tmp_path
):
    output = tmp_path / "trial"
    variables = mmseg_environment | {"SLURM_CONF": slurm["SLURM_CONF"]}
    options = ("--cluster", "slurm", "--parallel", 2, "--slurm", "time=30")
    begin = command(
        *(TINY, "--setting", "stock", "--setting", 'mad={"weighting": "mad"}', "--seeds", 1),
        *("--epochs", 40, "--output", output, *options, "--slurm", "cpus_per_task=1"),
    )
    submitted = run(*begin, env=variables)
    (array,) = set(re.findall(r"(\d+)_\d", submitted))
    cells = cancelled, requeued = [output / "cells" / name / "seed0" for name in ("stock", "mad")]

    def logs() -> str:
        parts = [
            *output.glob("cells/*/*.log"),
            *output.glob("cluster/*.out"),
            *output.glob("cluster/*.err"),
        ]
        return submitted + "".join(f"\n== {p}\n{p.read_text()[-1500:]}" for p in parts)

    def resumed(cell: Path) -> int:
        return len(re.findall(r"resumed epoch: \d+", cell.with_name("seed0.log").read_text()))

    assert wait(lambda: all((cell / "epoch.txt").exists() for cell in cells), 600), logs()
    run("scancel", f"{array}_0", env=variables)
    run("scontrol", "requeue", f"{array}_1", env=variables)
    assert wait(lambda: "stock/seed0" not in running(output), 60), logs()
    assert wait(lambda: resumed(requeued) == 1, 600), logs()
    run("scancel", "--signal", "USR2", f"{array}_1", env=variables)  # as SLURM before a time-out
    assert not any((cell / "result.json").exists() for cell in cells), "too late to interrupt"
    again = run(*command("--output", output, *options), env=variables)
    assert again.startswith("2 jobs: "), again  # one of a cell that is queued, which harms nothing
    assert wait(lambda: all((cell / "result.json").exists() for cell in cells), 600), logs()
    assert (resumed(cancelled), resumed(requeued)) == (1, 2), logs()
    assert "another process is running" not in cancelled.with_name("seed0.log").read_text()
    runs = [len(list((cell / "work").glob("*/*.log"))) for cell in cells]
    assert runs == [3, 4], "two and three trainings, and a test each"
    assert "cells: 2 done" in run(*command("--output", output, "--report"), env=variables)


def running(output: Path) -> list[str]:
    return [cell.name for cell in TrialPlan.load(output).cells() if cell.state == "running"]
