"""Tables of mean ± standard deviation with the best in bold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

_HEADS = {"auxiliary": "Auxiliary loss", "weighting": "Weighting", "setting": "Setting"}
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"±": "$\\pm$"}
)


def mean_and_std(
    results: pd.DataFrame, keys: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Mean and sample standard deviation of each group, as columns ``(title, mean|std)``.

    Args:
        results: one row per run.
        keys: columns that name a group; groups stay in order of appearance.
        columns: column of ``results`` -> title.
    """
    groups = results.groupby(list(keys), sort=False)[list(columns)]
    table = groups.agg(["mean", "std"])
    return table.rename(columns=dict(columns), level=0)


def best_in_bold(table: pd.DataFrame, smaller_is_better: Sequence[str] = ()) -> pd.DataFrame:
    """Cells ``mean ± std`` as text, the best of each column as ``**text**``."""
    shown = {}
    for title in dict.fromkeys(table.columns.get_level_values(0)):
        mean, std = table[title, "mean"], table[title, "std"]
        best = mean.min() if title in smaller_is_better else mean.max()
        shown[title] = [
            ""
            if pd.isna(m)
            else _bold(f"{m:.2f}" + ("" if pd.isna(s) else f" ± {s:.2f}"), m == best)
            for m, s in zip(mean, std, strict=True)
        ]
    return pd.DataFrame(shown, index=table.index)


def table_markdown(table: pd.DataFrame) -> str:
    """The table of :func:`best_in_bold` in Markdown."""
    flat = table.reset_index().rename(columns=_HEADS)
    lines = [_row(flat.columns), "|---" * len(flat.columns) + "|"]
    lines += map(_row, flat.itertuples(index=False))
    return "\n".join(lines) + "\n"


def table_latex(table: pd.DataFrame, caption: str) -> str:
    """The same in LaTeX, with booktabs' rules."""
    flat = table.reset_index().rename(columns=_HEADS)
    lines = [
        "\\begin{table}",
        f"\\caption{{{caption}}}",
        f"\\begin{{tabular}}{{{'l' * len(flat.columns)}}}",
        "\\toprule",
        " & ".join(map(_escape, flat.columns)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(_escape, row)) + " \\\\" for row in flat.itertuples(index=False)),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[object]) -> str:
    texts = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _escape(cell: object) -> str:
    text = str(cell)
    bold = text.startswith("**")
    text = text.strip("*").translate(_LATEX)
    return f"\\textbf{{{text}}}" if bold else text
