"""What ``optbench compare`` prints and writes, and the exit code it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import InvalidInputError, Problem
from harness.invocation import command
from harness.verbs.console import (
    DONE,
    FAILED,
    INCONCLUSIVE,
    INTERRUPTED,
    WRONG,
    errors,
    output,
    print_json,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.comparison.model import Analysis, Comparison
    from harness.reports.forest import Forest
    from harness.reports.model import Report
    from harness.store import Store
    from harness.verbs.comparing import Kept


def refuse_idle(beside: str, given: Mapping[str, object]) -> None:
    """Refuse options that change nothing where no arm is run.

    Args:
        beside: what was named instead of arms.
        given: option -> its value; None or empty: not given.

    Raises:
        InvalidInputError: with each of them.
    """
    what = f"does nothing beside {beside}: no arm is run"
    problems = [Problem(option, what, "leave it out") for option, value in given.items() if value]
    if problems:
        raise InvalidInputError(problems)


def show(
    kept: Kept, comparison: Comparison, store: Store, markdown: Path | None, svg: Path | None, *, as_json: bool
) -> int:
    """Print what came of a live comparison that has just ended; return the exit code.

    One that could not be stored is shown all the same, from memory.
    """
    name = kept.name if kept.unwritten is None else None
    code = show_stored(name, comparison, store, markdown, svg, as_json=as_json)
    if kept.unwritten is None:
        return code
    older = f"; {kept.name} has what was measured before" if kept.name is not None else ""
    errors.print(f"optbench: not stored: {kept.unwritten}{older}", markup=False, style="red")
    return _failed(code)


def show_stored(
    name: str | None,
    comparison: Comparison,
    store: Store,
    markdown: Path | None = None,
    svg: Path | None = None,
    *,
    as_json: bool,
) -> int:
    """Print what came of a comparison and write the files that were asked for; return the exit code.

    Args:
        name: of its folder in the store; None: it is in none.
        comparison: what was measured.
        store: that it is in.
        markdown: file for a pull request.
        svg: file for the forest plot.
        as_json: print a document instead of the table.
    """
    from harness.comparison.analysis import analyse
    from harness.reports import comparison as report
    from harness.reports import document

    found = analyse(comparison, comparison_id=name)
    try:
        if as_json:
            print_json({**document.document(found, comparison), "id": name})
        else:
            output.print(report.render(found, comparison))
            if name is not None:
                again = command("compare", "--from", name, results=store.root)
                for line in (f"Kept as {name}; again:", f"  {again}"):
                    errors.print(line, style="dim", markup=False, soft_wrap=True)
    finally:  # whoever reads the output may have gone
        written = _write_files(found, comparison, markdown, svg)
    code = _exit_code(found, comparison)
    return code if written else _failed(code)


def _exit_code(found: Analysis, comparison: Comparison) -> int:
    if comparison.outcome != "completed":
        return INTERRUPTED if comparison.outcome == "interrupted" else FAILED
    judged = [pair for pair in found.pairs if not pair.is_self_check]
    if any(pair.is_self_check and pair.verdict in {"faster", "slower"} for pair in found.pairs):
        return WRONG
    return INCONCLUSIVE if any(pair.verdict == "inconclusive" for pair in judged) else DONE


def _failed(code: int) -> int:
    """Return the exit code where something beside the comparison went wrong: the worse of both."""
    return FAILED if code in {DONE, INCONCLUSIVE} else code


def _write_files(found: Analysis, comparison: Comparison, markdown: Path | None, svg: Path | None) -> bool:
    """Write what was asked for; say what could not be, and return whether all was."""
    from harness.reports import markdown as pull_request
    from harness.reports.model import report
    from harness.reports.svg import svg as drawn

    done = True
    if markdown is not None:
        done = _write("--markdown", markdown, pull_request.markdown(found, comparison))
    if svg is not None:
        forest = _plot(report(found, comparison))
        if forest is None:
            errors.print(f"optbench: --svg {svg}: nothing to draw: no ratio is known", markup=False, style="red")
        done = forest is not None and _write("--svg", svg, drawn(forest)) and done
    return done


def _plot(found: Report) -> Forest | None:
    """Return the plot of all arms, or of the only pair; None: it would be empty."""
    plot = found.forest or (found.sections[0].forest if found.sections else None)
    return plot if plot is not None and any(row.ratio is not None for row in plot.rows) else None


def _write(option: str, file: Path, text: str) -> bool:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        told = f"optbench: {option} {file}: cannot be written: {error.strerror}"
        errors.print(told, markup=False, style="red")
        return False
    return True


def stored(words: Sequence[str], store: Store, markdown: Path | None, *, as_json: bool) -> int:
    """Compare stored runs: differences listed, counts exactly, times of other sittings shown and never judged."""
    from harness import compare
    from harness.reports import markdown_stored
    from harness.reports import stored as report

    found = compare.compare_runs(compare.read(words, store))
    written = True
    try:
        if as_json:
            print_json(report.document(found))
        else:
            output.print(report.render(found, store.root), crop=False)
    finally:
        if markdown is not None:
            written = _write("--markdown", markdown, markdown_stored.markdown(found))
    code = WRONG if found.refused else DONE
    return code if written else _failed(code)
