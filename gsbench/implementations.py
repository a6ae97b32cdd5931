"""The implementations that gsbench knows: the library's table, and what other packages add.

A package outside this repository adds its own through an entry point:

    [project.entry-points."gsbench.implementations"]
    mine = "my_package:IMPLEMENTATIONS"        # a sequence of gskernels.Implementation
"""

from __future__ import annotations

from importlib.metadata import entry_points

from gsbench.errors import UserError
from gskernels.table import IMPLEMENTATIONS, Implementation

GROUP = "gsbench.implementations"


def all_implementations() -> tuple[Implementation, ...]:
    """Raises UserError for an entry point that cannot be loaded, is of the wrong type, or reuses a name."""
    found = list(IMPLEMENTATIONS)
    for entry in entry_points(group=GROUP):
        try:
            added = tuple(entry.load())
        except Exception as e:
            raise UserError(f"entry point {entry.name} = {entry.value}: cannot be loaded: {type(e).__name__}: {e}") from None
        for implementation in added:
            if not isinstance(implementation, Implementation):
                raise UserError(f"entry point {entry.name}: {implementation!r} is not a gskernels.Implementation")
            if any(implementation.name == known.name for known in found):
                raise UserError(f"entry point {entry.name}: the name {implementation.name!r} is taken")
            found.append(implementation)
    return tuple(found)
