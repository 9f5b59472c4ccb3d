"""What is wrong with the entry points of installed packages: a row for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.entry_points import Fault


def table(faults: Sequence[Fault]) -> RenderableType:
    """Return package, entry point, reason and remedy of each; nothing where there is none."""
    if not faults:
        return Group()
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    rows.add_column("package", overflow="fold")
    rows.add_column("entry point", overflow="fold")
    rows.add_column("why it is not used, and what to do", overflow="fold", ratio=1)
    for fault in faults:
        named = f"{fault.name}\n{fault.kind}"
        rows.add_row(Text(fault.package), Text(named), Text(f"{fault.target} {fault.reason}; {fault.remedy}"))
    return Group(Text("Entry points of installed packages that are not used", style="bold red"), rows, Text(""))
