"""What torch.compile did, by name: graphs, the reasons of graph breaks, the functions that were compiled anew."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

ADDRESS = re.compile(r"0x[0-9a-f]+")
SHOWN = 120
"""Characters of a reason that are kept."""


class Compilations:
    """Follows torch._dynamo's counters from the moment it is made.

    Never imports torch._dynamo: where nothing has, nothing was compiled.
    """

    def __init__(self) -> None:
        self._recompiled: dict[str, str] = {}
        self._known = {identity for identity, _ in _compilations()}
        self._graphs, self._breaks = _graphs(), _breaks()

    def look(self) -> None:
        """Note recompilations; torch remembers the last 64 compilations only, so look after every step."""
        for identity, function in _compilations():
            if identity not in self._known and _is_recompile(identity):
                self._recompiled[identity] = function

    def graphs(self) -> dict[str, int]:
        """Return how many graphs there are; empty: none."""
        made = _graphs() - self._graphs
        return {"graphs": made} if made else {}

    def breaks(self) -> dict[str, int]:
        """Return graph breaks by reason."""
        return dict(_breaks() - self._breaks)

    def recompiles(self) -> dict[str, int]:
        """Return recompilations by the function's name."""
        return dict(Counter(self._recompiled.values()))


def _counters() -> Any:
    return getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})


def _graphs() -> int:
    return int(_counters().get("stats", {}).get("unique_graphs", 0))


def _breaks() -> Counter[str]:
    found: Counter[str] = Counter()
    for reason, count in _counters().get("graph_break", {}).items():
        first = next((line.strip() for line in str(reason).splitlines() if line.strip()), "unknown")
        found[ADDRESS.sub("0x…", first)[:SHOWN]] += count
    return found


def _compilations() -> list[tuple[str, str]]:
    ask = getattr(sys.modules.get("torch._dynamo.utils"), "get_compilation_metrics", None)
    found = [] if ask is None else ask()
    return [(str(each.compile_id), str(each.co_name)) for each in found if each.compile_id is not None]


def _is_recompile(identity: str) -> bool:
    """Say whether an id ``frame/number`` is of a frame that had been compiled before.

    One with ``_attempt`` after the number was restarted, and counts under its own id once it is done.
    """
    number = identity.rpartition("/")[2]
    return number.partition("_")[0] != "0" and "_" not in number
