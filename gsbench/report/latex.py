"""The tables of the report for papers: LaTeX with booktabs, every text from a record escaped."""

from __future__ import annotations

from collections.abc import Iterator

from gsbench.report import tables
from gsbench.report.contents import Report
from gsbench.report.tables import Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "×": r"$\times$", "†": r"\dag{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def latex(report: Report) -> str:
    """Tables for \\input; the preamble needs \\usepackage{booktabs} and, for wide ones, graphicx."""
    families = [tables.by_family(group) for group in report.groups]
    found = [tables.summary(report.groups), *families, tables.exponents(report.views)]
    lines = ["% gsbench report --latex; needs \\usepackage{booktabs,graphicx}"]
    for table in found:
        if table.rows:
            lines += _table(table)
    return "\n".join(lines) + "\n"


def _table(table: Table) -> Iterator[str]:
    columns = "".join("l" if i < table.labels else "r" for i in range(len(table.header)))
    yield from ("\\begin{table}", "\\centering", f"\\caption{{{escaped(f'{table.title}. {table.note}'.strip())}}}")
    yield from ("\\resizebox{\\linewidth}{!}{%", f"\\begin{{tabular}}{{{columns}}}", "\\toprule")
    yield " & ".join(escaped(name) for name in table.header) + r" \\"
    yield "\\midrule"
    for row in table.rows:
        cells = [f"\\textbf{{{escaped(cell.text)}}}" if cell.strong and cell.text else escaped(cell.text) for cell in row]
        yield " & ".join(cells) + r" \\"
    yield from ("\\bottomrule", "\\end{tabular}}", "\\end{table}", "")


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(c, c) for c in " ".join(text.split()))
