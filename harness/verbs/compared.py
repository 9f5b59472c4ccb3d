"""What ``optbench compare`` prints and writes, and the exit code it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.verbs.console import (
    DONE,
    FAILED,
    INCONCLUSIVE,
    INTERRUPTED,
    WRONG,
    errors,
    output,
    print_json,
    program,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.comparison.model import Comparison
    from harness.store import Store


def show(name: str, comparison: Comparison, markdown: Path | None, svg: Path | None, *, as_json: bool) -> int:
    """Print what came of a live comparison; return the exit code."""
    from harness.comparison.analysis import analyse
    from harness.reports import comparison as report
    from harness.reports import document
    from harness.reports import markdown as pull_request
    from harness.reports.model import report as modelled
    from harness.reports.svg import svg as drawn

    found = analyse(comparison, comparison_id=name)
    if markdown is not None:
        markdown.write_text(pull_request.markdown(found, comparison), encoding="utf-8")
    forest = modelled(found, comparison).forest
    if svg is not None and forest is not None:
        svg.write_text(drawn(forest), encoding="utf-8")
    if as_json:
        print_json({**document.document(found, comparison), "id": name})
    else:
        output.print(report.render(found, comparison))
        errors.print(f"Kept as {name}; again: {program()} compare --from {name}", style="dim", markup=False)
    if comparison.outcome != "completed":
        return INTERRUPTED if comparison.outcome == "interrupted" else FAILED
    judged = [pair for pair in found.pairs if not pair.is_self_check]
    if any(pair.is_self_check and pair.verdict in {"faster", "slower"} for pair in found.pairs):
        return WRONG
    return INCONCLUSIVE if any(pair.verdict == "inconclusive" for pair in judged) else DONE


def stored(words: Sequence[str], store: Store, markdown: Path | None, *, as_json: bool) -> int:
    """Compare stored runs: differences listed, counts exactly, times of other sittings shown and never judged."""
    from harness import compare
    from harness.reports import markdown_stored
    from harness.reports import stored as report

    found = compare.compare_runs(compare.read(words, store))
    if markdown is not None:
        markdown.write_text(markdown_stored.markdown(found), encoding="utf-8")
    if as_json:
        print_json(report.document(found))
    else:
        output.print(report.render(found))
    return WRONG if found.refused else DONE
