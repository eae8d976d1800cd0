"""Commands that try settings on a data set of the user: dmf trial nnunet, dmf trial mmseg."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from dmf_plugins.cli.app import app, parse_json, path
from dmf_plugins.cli.cells import (
    CfgOptions,
    Cluster,
    Jobs,
    OneCell,
    Parallel,
    Report,
    Slurm,
    Wish,
    Workers,
)
from dmf_plugins.errors import UsageError, needs

if TYPE_CHECKING:
    from dmf_plugins.trials.plan import TrialPlan

trial = typer.Typer(
    help="Does it help on my data? Train settings that differ in the loss alone, and compare them.",
    no_args_is_help=True,
)
app.add_typer(trial, name="trial")

Output = Annotated[
    Path,
    typer.Option("--output", "-o", parser=path, help="Folder of the trial; finished cells stay."),
]
Setting = Annotated[
    Optional[list[str]],
    typer.Option("--setting", help="NAME=JSON of DMFLoss options; repeatable."),
]
Groups = Annotated[
    Optional[Path],
    typer.Option(
        parser=path,
        help="CSV with the columns case and group (patients, near duplicates); default the "
        "converter's manifest, where there is one.",
    ),
]
Epochs = Annotated[
    Optional[int], typer.Option(min=1, help="Length of a training; default the framework's.")
]


@trial.command(
    "nnunet",
    epilog="Example: dmf trial nnunet 501 -c 2d --trainers nnUNetTrainer,nnUNetTrainerDMF --folds 0,1,2",
)
def trial_nnunet(
    dataset: Annotated[
        Optional[str],
        typer.Argument(help="Number or name; not needed for a trial begun earlier."),
    ] = None,
    output: Output = Path("trial"),
    configuration: Annotated[
        str, typer.Option("--configuration", "-c", help="As nnU-Net calls it.")
    ] = "2d",
    trainers: Annotated[
        str,
        typer.Option(help="Separated by commas; the others are compared with the first."),
    ] = "nnUNetTrainer,nnUNetTrainerDMF",
    setting: Setting = None,
    folds: Annotated[str, typer.Option(help="Separated by commas.")] = "0,1,2,3,4",
    epochs: Epochs = None,
    iterations: Annotated[
        Optional[int], typer.Option(min=1, help="Steps per epoch; default nnU-Net's 250.")
    ] = None,
    plans: Annotated[str, typer.Option("--plans", "-p", help="nnU-Net's plans.")] = "nnUNetPlans",
    device: Annotated[
        Optional[str], typer.Option(help="cuda, cpu or mps; default the best there is.")
    ] = None,
    groups: Groups = None,
    workers: Workers = None,
    cluster: Cluster = None,
    parallel: Parallel = 4,
    slurm: Slurm = None,
    jobs: Jobs = False,
    cell: OneCell = None,
    report: Report = False,
) -> None:
    """Trainers and DMF settings on any prepared data set of nnU-Net, fold by fold.

    Cells of a fold share the initial network, and with nnUNet_n_proc_DA=0 the order of the images. A
    killed cell continues from its last checkpoint; new trainers, settings and folds may be added.
    """
    from dmf_plugins.trials import nnunet
    from dmf_plugins.trials.plan import TrialPlan
    from dmf_plugins.trials.report import write_report

    if dataset is None:
        plan = _begun(output, "nnunet")
    else:
        if not all(part.strip().isdigit() for part in folds.split(",")):
            raise UsageError(f"--folds must be numbers separated by commas, got {folds!r}")
        plan = TrialPlan(
            output=output,
            framework="nnunet",
            settings=nnunet.settings(trainers, parse_json(setting, "--setting", once=True)),
            seeds=sorted({int(part) for part in folds.split(",")}),
            epochs=epochs,
            options={
                "dataset": dataset,
                "configuration": configuration,
                "plans": plans,
                "iterations": iterations,
                "device": device,
            },
        )
        nnunet.check(plan)
        plan = plan.begin()
    wish = Wish(workers, cluster, parallel, slurm, jobs, cell, report)
    wish.fulfil(plan, partial(nnunet.run, plan), partial(write_report, plan, nnunet, groups))


@trial.command(
    "mmseg",
    epilog='Example: dmf trial mmseg my_config.py --setting stock --setting \'mad={"weighting": "mad"}\'',
)
def trial_mmseg(
    config: Annotated[
        Optional[Path],
        typer.Argument(parser=path, help="Config file; not needed for a trial begun earlier."),
    ] = None,
    output: Output = Path("trial"),
    setting: Annotated[
        Optional[list[str]],
        typer.Option(
            "--setting",
            help="stock for the config as it is, or NAME=JSON of DMFLoss options; repeatable; the "
            "others are compared with the first.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    epochs: Epochs = None,
    cfg_options: CfgOptions = None,
    groups: Groups = None,
    workers: Workers = None,
    cluster: Cluster = None,
    parallel: Parallel = 4,
    slurm: Slurm = None,
    jobs: Jobs = False,
    cell: OneCell = None,
    report: Report = False,
) -> None:
    """Settings of the loss on any config of MMSegmentation, seed by seed, scored on its test part.

    Cells of a seed share the initial network and the order of the images. A killed cell resumes from
    its last checkpoint; the last network is the one that is scored.
    """
    with needs("mmseg,evaluate"):
        from dmf_plugins.trials import mmseg
    from dmf_plugins.trials.plan import TrialPlan
    from dmf_plugins.trials.report import write_report

    if config is None:
        plan = _begun(output, "mmseg")
    else:
        entries = setting or ["stock", "dmf={}"]
        own = [entry for entry in entries if entry != mmseg.STOCK]
        names = [entry.partition("=")[0] for entry in entries]
        with contextlib.redirect_stdout(sys.stderr):  # mmengine's log is no job of --jobs
            plan = TrialPlan(
                output=output,
                framework="mmseg",
                settings=mmseg.settings(names, parse_json(own, "--setting", once=True)),
                seeds=list(range(seeds)),
                epochs=epochs,
                options={
                    "config": str(config.absolute()),
                    "cfg_options": parse_json(cfg_options, "--cfg-options"),
                },
            )
            if not report:
                mmseg.check(plan)
        plan = plan.begin()
    wish = Wish(workers, cluster, parallel, slurm, jobs, cell, report)
    wish.fulfil(plan, partial(mmseg.run, plan), partial(write_report, plan, mmseg, groups))


def _begun(output: Path, framework: str) -> TrialPlan:
    from dmf_plugins.trials.plan import TrialPlan

    plan = TrialPlan.load(output)
    if plan.framework != framework:
        raise UsageError(
            f"{output} holds a trial with {plan.title}; use: dmf {plan.command} --output {output}"
        )
    return plan
