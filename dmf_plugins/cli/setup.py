"""Commands about the installation: paths, copy-configs, doctor, export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from dmf_plugins.cli.app import LastArgument, Overwrite, app, one_output, path
from dmf_plugins.errors import UsageError, needs


@app.command(epilog='Example: export nnUNet_extTrainer="$(dmf paths --nnunet)"')
def paths(
    nnunet: Annotated[
        bool, typer.Option("--nnunet", help="Folder for the variable nnUNet_extTrainer.")
    ] = False,
    mmseg: Annotated[
        bool, typer.Option("--mmseg", help="Folder of the MMSegmentation configs.")
    ] = False,
) -> None:
    """Print where the trainers or the configs live."""
    from dmf_plugins.paths import bundled

    if nnunet == mmseg:
        raise UsageError("say which path: dmf paths --nnunet, or dmf paths --mmseg")
    typer.echo(bundled("nnunet_trainers" if nnunet else "mmseg_configs"))


@app.command("copy-configs", epilog="Example: dmf copy-configs --output my_project/dmf_configs")
def copy_configs(
    last: LastArgument = None,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", "-o", parser=path, help="Folder to create; needed."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy the MMSegmentation configs next to your own, to inherit from by a relative path."""
    import shutil

    from dmf_plugins.atomic import building
    from dmf_plugins.paths import bundled

    output = one_output(output, last)
    with building(output, "copy-configs", overwrite) as folder:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(bundled("mmseg_configs"), folder, dirs_exist_ok=True, ignore=ignore)
    typer.echo(f"wrote {output}")


@app.command(epilog="Example: dmf doctor")
def doctor(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the findings for a script.")
    ] = False,
    env: Annotated[
        bool, typer.Option("--env", help="Add torch's report on the machine, for a bug report.")
    ] = False,
) -> None:
    """Check this installation; say what is wrong and the command that fixes it (exit code 1)."""
    from dmf_plugins.doctor import as_json, collect_env, examine, is_broken

    if json_output and env:
        raise UsageError("--json and --env exclude each other; give one")
    findings = []
    if json_output:
        findings = list(examine())
        typer.echo(as_json(findings))
    else:
        signs = {"ok": "ok     ", "warning": "warning", "error": "ERROR  ", "skipped": "-      "}
        for finding in examine():
            findings.append(finding)
            typer.echo(f"{signs[finding.status]}  {finding.check}: {finding.detail}")
            if finding.fix:
                typer.echo(f"           {finding.fix}")
    if env:
        typer.echo(f"\n{collect_env()}")
    if is_broken(findings):
        raise typer.Exit(1)


@app.command(
    epilog="Example: dmf export nnUNet_results/Dataset501_BUSI/nnUNetTrainerDMF__nnUNetPlans__2d"
)
def export(
    model: Annotated[
        Path,
        typer.Argument(
            parser=path, help="nnU-Net's model folder, or MMSegmentation's work directory."
        ),
    ],
    last: LastArgument = None,
    output: Annotated[
        Optional[Path],
        typer.Option(
            "--output",
            "-o",
            parser=path,
            help="Folder to write; for nnU-Net default MODEL_exported.",
        ),
    ] = None,
    config: Annotated[
        Optional[Path],
        typer.Option(parser=path, help="MMSegmentation: config, if not the one left there."),
    ] = None,
    checkpoint: Annotated[
        Optional[Path],
        typer.Option(parser=path, help="MMSegmentation: checkpoint, default the best."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy a trained model so that it predicts without this plug-in installed."""
    if not model.is_dir():
        raise UsageError(f"{model} is not a folder; give a model folder or a work directory")
    if output is not None or last is not None:
        output = one_output(output, last)
    if (model / "plans.json").is_file():
        if config is not None or checkpoint is not None:
            raise UsageError(
                f"{model} is an nnU-Net model; --config and --checkpoint are MMSegmentation's"
            )
        with needs("nnunet"):
            from dmf_plugins.nnunet.export import export_nnunet
        written = export_nnunet(model, output, overwrite=overwrite)
        folds = sorted(path.name.removeprefix("fold_") for path in written.glob("fold_*"))
        typer.echo(
            f"wrote {written}; run it with: nnUNetv2_predict_from_modelfolder -i IN -o OUT "
            f"-m {shlex.quote(str(written))} -f {' '.join(folds)}"
        )
        return
    if output is None:
        raise UsageError(
            f"{model} is no nnU-Net model folder, which has plans.json beside fold_0; "
            "for MMSegmentation's work directory give --output FOLDER"
        )
    with needs("mmseg"):
        from dmf_plugins.mmseg.export import export_mmseg
    export_mmseg(model, output, config=config, checkpoint=checkpoint, overwrite=overwrite)
    typer.echo(f"wrote {output}/config.py and {output}/model.pth")
