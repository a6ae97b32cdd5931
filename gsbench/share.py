"""Shares as people write them: "3%" or "0.03"."""

from __future__ import annotations


def parse_share(text: str) -> float:
    """0.03 from "3%" or "0.03". Raises ValueError for anything else, and outside of 0 to 1 (excluded)."""
    number = text.strip()
    try:
        value = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ValueError("not a share from 0% up to 100%, such as 3% or 0.03")
    return value
