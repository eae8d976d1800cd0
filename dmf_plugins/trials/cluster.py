"""The cells as one job array of a cluster, by submitit."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmf_plugins.errors import DMFError, UsageError, needs
from dmf_plugins.trials.engine import cell_command, unfinished
from dmf_plugins.trials.plan import Plan

CLUSTERS = ("slurm", "debug")
MINUTES = "240"  # of a job, unless the user says otherwise; submitit's own 5 finish nothing
TIMEOUTS = 100  # how often a cell may run out of time and continue


@dataclass(frozen=True)
class Job:
    """A cell, run by its command; requeued when it runs out of time, and the cell continues."""

    command: tuple[str, ...]
    log: Path

    def __call__(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            subprocess.run(self.command, check=True, stdout=stream, stderr=subprocess.STDOUT)

    def checkpoint(self) -> Any:
        """What submitit queues in its place."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(plan: Plan, cluster: str, parallel: int, options: Mapping[str, str]) -> list[str]:
    """Hand every cell that has not finished to a cluster; the numbers of its jobs.

    Args:
        plan: the trial.
        cluster: ``slurm``; ``debug`` runs the jobs here, one after another.
        parallel: jobs at a time.
        options: of sbatch, such as ``partition``, ``time`` (minutes) or ``gpus``.

    Raises:
        UsageError: the cluster is unknown or its commands are not here, or an option is refused.
        DMFError: it does not take the jobs, or one that ran here failed.
    """
    if cluster not in CLUSTERS:
        raise UsageError(f"--cluster must be {' or '.join(CLUSTERS)}, got {cluster!r}")
    jobs = [Job(tuple(cell_command(plan, cell)), cell.log) for cell in unfinished(plan)]
    executor = _executor(plan.output / "cluster", cluster, parallel, options)
    if not jobs:
        return []
    try:
        with executor.batch():
            handed = [executor.submit(job) for job in jobs]
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        raise DMFError(f"the cluster did not take the jobs: {error}") from error
    if cluster == "debug":
        # all of them run; result() would open a debugger
        failed = [job.log for job, one in zip(jobs, handed, strict=True) if one.exception()]
        if failed:
            raise DMFError(f"{len(failed)} of {len(jobs)} cells failed; see {failed[0]}")
    return [one.job_id for one in handed]


def _executor(folder: Path, cluster: str, parallel: int, options: Mapping[str, str]) -> Any:
    with needs("cluster"):
        import submitit
    given = {"time": MINUTES, **options}
    if not given["time"].isdigit():
        raise UsageError(f"--slurm time must be minutes, got {given['time']!r}")
    values = {k: int(v) if v.isdigit() else v for k, v in given.items()}
    known = submitit.SlurmExecutor._valid_parameters()
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=TIMEOUTS)
        executor.update_parameters(
            slurm_job_name="dmf",
            slurm_array_parallelism=parallel,
            slurm_additional_parameters={k: v for k, v in values.items() if k not in known},
            **{f"slurm_{k}": v for k, v in values.items() if k in known},
        )
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"--cluster {cluster}: {error}; --jobs suits any other scheduler"
        ) from error
    return executor
