"""Markdown and JUnit XML of lines whose words anyone may have written: none is ever read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.etree import ElementTree

from gsbench.case import Case

COMMENT = 65_000  # characters; a pull-request comment may have 65,536, and a workflow adds a line of its own
_HARMLESS = set(" ./,=-+%()_:;→'\n")


def fit(lines: Iterable[str], most: int, everything: str) -> str:
    """The first lines that fit into `most` characters (1,000 or more), and what prints `everything` if some do not."""
    room = most - 200  # for the line that says what was left out
    kept: list[str] = []
    left_out = 0
    for line in lines:
        cost = len(line) + 1
        if left_out or cost > room:
            left_out += 1
            continue
        kept.append(line)
        room -= cost
    if left_out:
        opened, closed = (sum(line.startswith(mark) for line in kept) for mark in ("<details>", "</details>"))
        kept += ["", "</details>"] * (opened - closed)
        kept += ["", f"{left_out} more lines do not fit here: `{everything}` has everything."]
    return "\n".join(kept) + "\n"


def details(title: str, lines: list[str]) -> Iterator[str]:
    yield ""
    yield f"<details><summary>{title}: {len(lines)}</summary>"
    yield ""
    for line in lines:
        yield f"- {plain(line)}"
    yield ""
    yield "</details>"


def some(names: Iterable[str], most: int = 10) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def row(*cells: str) -> str:
    return f"| {' | '.join(map(plain, cells))} |"


def plain(text: str) -> str:
    """Whatever could be read as Markdown, HTML or a mention becomes a character reference; no line breaks."""
    words = " ".join(text.split())
    return "".join(c if c.isalnum() or c in _HARMLESS else f"&#{ord(c)};" if c.isprintable() else "�" for c in words)


def junit_case(suite: ElementTree.Element, case: Case, seconds: float) -> ElementTree.Element:
    names = {"classname": xml_text(f"gsbench.{case.implementation}"), "name": xml_text(str(case)), "time": f"{seconds:.9f}"}
    return ElementTree.SubElement(suite, "testcase", names)


def to_xml(root: ElementTree.Element) -> str:
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def xml_text(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold (ElementTree escapes the others)."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
