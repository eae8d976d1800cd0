"""The report as one page that needs neither scripts nor a network."""

from __future__ import annotations

import base64
import html
import io
import json
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from dmf_plugins.errors import DMFError
from dmf_plugins.metrics.labelmaps import find_label_maps, read_label_map, stem
from dmf_plugins.report.dynamics import plot_terms, plot_weights, save_figure
from dmf_plugins.report.log import read_log
from dmf_plugins.trials.report import Findings, best_row

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.verdict { border-left: 4px solid #00796b; background: #eef6f5; padding: .8rem 1rem; font-size: 1.1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d8dee4; text-align: left }
code { font-size: .85rem; overflow-wrap: anywhere } svg, img { max-width: 100%; height: auto }
.case { display: inline-block; width: 18rem; margin-right: 1rem; vertical-align: top }
figure { margin: .4rem 0 }
figcaption, small { color: #57606a; font-size: .85rem }
"""


def write_html(findings: Findings, framework: Any) -> list[str]:
    """Write ``report.html`` and its drawings beside it; names of the files."""
    output = findings.plan.output
    drawings = {"forest.svg": forest(findings.comparison), "curves.svg": _curves(findings)}
    shown: dict[str, str] = {}
    for name, figure in drawings.items():
        if figure is not None:
            save_figure(figure, output / name)
            text = (output / name).read_text(encoding="utf-8")
            shown[name] = text[text.index("<svg") :]
    (output / "report.html").write_text(
        _page(findings, shown, _examples(findings, framework)), encoding="utf-8"
    )
    return [*shown, "report.html"]


def _page(findings: Findings, drawings: dict[str, str], examples: str) -> str:
    plan = findings.plan
    finished = {c.setting for c in findings.cells}
    settings = pd.DataFrame(
        {
            "setting": list(plan.settings),
            "options": [_plain(options) for options in plan.settings.values()],
            "finished": [
                f"{sum(c.setting == name for c in findings.cells)} of {len(plan.seeds)}"
                for name in plan.settings
            ],
        }
    )
    common = _plain({"epochs": plan.epochs or "the framework's", **plan.options})
    parts = [
        f"<h1>Trial with {plan.title}</h1>",
        f'<p class="verdict">{html.escape(findings.verdict)}</p>',
        f"<h2>Settings</h2><p><small>{html.escape(common)}</small></p>{_table(settings)}",
        "<h2>Scores, percent, mean ± standard deviation over trainings</h2>",
        _table(findings.table.reset_index()),
    ]
    if "forest.svg" in drawings:
        parts += [
            f"<h2>Paired differences from {html.escape(findings.reference)}</h2>",
            drawings["forest.svg"],
            "<p><small>Dice per case, averaged over repeats; lines are bootstrap 95 % intervals, grey "
            "bands what this trial would have missed at 80 % power.</small></p>",
        ]
    parts += ["<h2>Dice per class, percent</h2>", _table(findings.classes.mul(100).reset_index())]
    if examples:
        parts += ["<h2>Cases with the largest gain, the median and the largest loss</h2>", examples]
    if "curves.svg" in drawings:
        parts += ["<h2>Weights and terms of the first repeat</h2>", drawings["curves.svg"]]
    missing = [name for name in plan.settings if name not in finished]
    if missing:
        parts.append(f"<p><small>Not finished: {html.escape(', '.join(missing))}.</small></p>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dmf trial</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _plain(options: dict[str, Any]) -> str:
    shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items() if v}
    return ", ".join(f"{key} = {value}" for key, value in shown.items())


def _table(table: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):
        text = table.to_html(index=False, border=0, na_rep="", float_format="{:.2f}".format)
    while "**" in text:  # the best, as Markdown marks it
        text = text.replace("**", "<b>", 1).replace("**", "</b>", 1)
    return text


def forest(comparison: pd.DataFrame, score: str = "Dice") -> Figure | None:
    """Differences from the reference, percentage points, with what would have been missed in grey."""
    rows = comparison.to_dict("records")
    if not rows:
        return None
    with style.context("default"):
        figure = Figure(figsize=(8, 1 + 0.45 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(reversed(rows)):
            low, mid, high, missed = (
                100 * row[key] for key in ("low", "difference", "high", "detectable")
            )
            if missed > 0:
                axes.fill_betweenx([y - 0.35, y + 0.35], -missed, missed, color="0.9", linewidth=0)
            axes.plot([low, high], [y, y], color="#00796b", linewidth=2)
            axes.plot(mid, y, "s", color="#00796b")
        axes.axvline(0, color="k", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [row["a"] for row in reversed(rows)])
        axes.set_xlabel(f"points of {score} more than {rows[0]['b']}")
    return figure


def _curves(findings: Findings) -> Figure | None:
    logs = {}
    for cell in findings.cells:
        path = cell.folder / cell.result()["log"]
        if cell.seed == findings.cells[0].seed and path.is_file():
            logs[cell.setting] = read_log(path)
    if not logs:
        return None
    with style.context("default"):
        figure = Figure(figsize=(10, 2.2 * len(logs)), layout="constrained")
        panels = figure.subplots(len(logs), 2, squeeze=False)
        for (left, right), (name, log) in zip(panels, logs.items(), strict=True):
            plot_weights(left, log)
            plot_terms(right, log)
            left.set_title(name, fontsize=9, loc="left")
    return figure


def _examples(findings: Findings, framework: Any) -> str:
    """Truth and predictions of both settings over three cases, for the best of the others."""
    if findings.comparison.empty:
        return ""
    best = str(best_row(findings.comparison)["a"])
    gain = (findings.scores[best] - findings.scores[findings.reference]).dropna().sort_values()
    places = {"largest gain": -1, "median": len(gain) // 2, "largest loss": 0}
    parts = []
    for title, place in places.items():
        case = str(gain.index[place])
        figures = []
        for setting in (findings.reference, best):
            picture = _overlay(findings, framework, case, setting)
            if picture is not None:
                dice = 100 * findings.scores[setting][case]
                caption = html.escape(f"{title}: {case}, {setting}, Dice {dice:.1f}")
                figures.append(
                    f'<figure><img alt="{caption}" src="data:image/png;base64,{picture}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
        if figures:
            parts.append(f'<div class="case">{"".join(figures)}</div>')
    legend = "<p><small>Line: truth. Colour: prediction. Of a volume, the slice with most truth.</small></p>"
    return "".join(parts) + legend if parts else ""


def _overlay(findings: Findings, framework: Any, case: str, setting: str) -> str | None:
    for cell in findings.cells:
        result = cell.result()
        folders = framework.truth(findings.plan, cell), cell.folder / result["predictions"]
        if cell.setting != setting or not all(folder.is_dir() for folder in folders):
            continue
        maps = [find_label_maps(folder) for folder in folders]
        if case in maps[1]:
            found = [read_label_map(paths[case]).labels for paths in maps]
            ranks = list(result["labels"].values())  # others are background, or not scored
            truth, predicted = (np.where(np.isin(one, ranks), one, 0) for one in found)
            image = _image(framework.images(findings.plan, cell), case, truth.shape)
            if truth.ndim == 3:
                middle = int((truth > 0).sum(axis=(1, 2)).argmax()) or len(truth) // 2
                truth, predicted, image = truth[middle], predicted[middle], image[middle]
            return _png(image, truth, predicted)
    return None


def _image(folder: Path, case: str, shape: tuple[int, ...]) -> np.ndarray:
    """The image of a case, grey; black where it is not there or not of the labels' size."""
    found = [
        p for p in sorted(folder.glob(f"{escape(case)}*")) if stem(p) in (case, f"{case}_0000")
    ]
    try:
        if found and found[0].name.endswith((".nii.gz", ".nii", ".nrrd", ".mha")):
            import SimpleITK

            values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(found[0])))
        elif found:
            from PIL import Image

            values = np.asarray(Image.open(found[0]).convert("L"))
        else:
            return np.zeros(shape)
    except (OSError, RuntimeError, DMFError):
        return np.zeros(shape)
    return values if values.shape == shape else np.zeros(shape)


def _png(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> str:
    with style.context("default"):
        figure = Figure(figsize=(3, 3), layout="constrained")
        axes = figure.subplots()
        axes.imshow(image, cmap="gray")
        top = max(2, int(truth.max()), int(predicted.max()))
        shown = np.ma.masked_equal(predicted, 0)
        axes.imshow(shown, cmap="autumn", alpha=0.45, vmin=1, vmax=top, interpolation="nearest")
        for label in np.unique(truth[truth > 0]):
            axes.contour(truth == label, levels=[0.5], colors="cyan", linewidths=1.2)
        axes.set_axis_off()
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=90)
    return base64.b64encode(stream.getvalue()).decode()
