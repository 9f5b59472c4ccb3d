"""A comparison on a terminal: the verdict in words, then every ratio with its interval drawn beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from harness.reports import forest
from harness.reports.model import report
from harness.reports.printable import encodable
from harness.reports.words import interval, interval_of, percent, times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderableType

    from harness.comparison.model import Analysis, Comparison
    from harness.reports.forest import Forest
    from harness.reports.model import Report, Section

STYLES = {"faster": "green", "less": "green", "slower": "red", "more": "red", "inconclusive": "yellow"}

NARROWEST_PLOT = 12
WIDEST_PLOT = 48


def render(analysis: Analysis, comparison: Comparison, width: int | None = None) -> RenderableType:
    """Return a comparison for a terminal or a pipe.

    Args:
        analysis: what came of it.
        comparison: what was measured.
        width: columns; None: the console's.
    """
    return _Rendered(report(analysis, comparison), width)


def draw(plot: Forest, width: int | None = None) -> RenderableType:
    """Return a forest plot alone for a terminal or a pipe."""
    return _Drawn(plot, width)


@dataclass(frozen=True)
class _Drawn:
    plot: Forest
    width: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        page = _Page(min(self.width or options.max_width, options.max_width), options.encoding)
        yield page.text(self.plot.title, "bold")
        yield page.table(self.plot)


@dataclass(frozen=True)
class _Rendered:
    """Lays itself out once the console's width and encoding are known."""

    report: Report
    width: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        page = _Page(min(self.width or options.max_width, options.max_width), options.encoding)
        yield from page.whole(self.report)


@dataclass(frozen=True)
class _Page:
    width: int
    encoding: str

    def whole(self, report: Report) -> Iterator[RenderableType]:
        if report.heading:
            yield self.text(report.heading, "bold")
        for letter, (name, what) in zip(_letters(len(report.arms)), report.arms, strict=True):
            yield self.text(f"  {letter}  {name}" + (f"  ({what})" if what else ""))
        if report.failed:
            yield self.text(report.failed, "red")
        if report.forest is not None:
            yield from (Text(""), self.text(report.forest.title, "bold"), self.table(report.forest))
        for section in report.sections:
            yield from self._section(section)
        yield Text("")
        for line in report.measured:
            yield self.text(line, "dim")
        for warning in report.warnings:
            yield self.text(f"! {warning}", "yellow")
        if report.sections:
            yield self.text(legend(report), "dim")

    def _section(self, section: Section) -> Iterator[RenderableType]:
        title = f"self-check: {section.sentence}" if section.is_self_check else section.sentence
        yield Text("")
        yield self.text(title, f"bold {STYLES.get(section.verdict, '')}".strip())
        for warning in section.warnings:
            yield self.text(f"! {warning}", "bold red")
        if section.lines:
            smallest = [percent(line.estimate.smallest_effect) for line in section.lines]
            intervals = [interval(line.estimate) for line in section.lines]
            yield self.table(section.forest, intervals, smallest)
        for line in section.told:
            yield self.text(line)

    def text(self, line: str, style: str = "") -> Text:
        return Text(encodable(line, self.encoding), style=style)

    def table(
        self, plot: Forest, intervals: list[str] | None = None, smallest: list[str] | None = None
    ) -> RenderableType:
        """Return a row a ratio, the plot in their midst and its axis below; in a narrow page no plot."""
        intervals = intervals or [_interval(row) for row in plot.rows]
        columns = {
            "B/A": [times(row.ratio) for row in plot.rows],
            f"{plot.level:g} % interval": [self._spelled(each) for each in intervals],
            "verdict": [row.word for row in plot.rows],
        }
        if smallest and self.width >= 60:
            columns["sees"] = smallest
        taken = sum(1 + max(len(head), *map(len, cells), 0) for head, cells in columns.items())
        name_width = min(max((len(row.label) for row in plot.rows), default=0), max(11, self.width // 3))
        plot_width = min(WIDEST_PLOT, self.width - taken - name_width - 1)
        if plot_width >= NARROWEST_PLOT:
            drawn = self._plot(plot, plot_width)
            columns = dict(
                [*list(columns.items())[:2], (_ends(plot, plot_width), drawn), *list(columns.items())[2:]]
            )
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
        table.add_column("", overflow="fold", max_width=name_width)
        for head in columns:
            left = head == "verdict" or head not in {"B/A", "sees", f"{plot.level:g} % interval"}
            table.add_column(head, justify="left" if left else "right", no_wrap=True)
        for index, row in enumerate(plot.rows):
            cells = [Text(each[index], style=self._style(head, row)) for head, each in columns.items()]
            table.add_row(self.text(row.label), *cells)
        if plot_width >= NARROWEST_PLOT:
            ticks = forest.labels(forest.axis(plot.rows, plot.margin), plot_width)
            table.add_row("", "", "", Text(ticks, style="dim"))
        return table

    def _plot(self, plot: Forest, width: int) -> list[str]:
        marks = forest.ASCII if self._is_ascii() else forest.UNICODE
        scale = forest.axis(plot.rows, plot.margin)
        return [forest.strip(row, scale, plot.margin, width, marks) for row in plot.rows]

    def _spelled(self, text: str) -> str:
        return encodable(text, self.encoding)

    def _style(self, head: str, row: forest.Row) -> str:
        return "" if head in {"B/A", "sees"} or "interval" in head else STYLES.get(row.word, "")

    def _is_ascii(self) -> bool:
        return encodable(_ALL_MARKS, self.encoding) != _ALL_MARKS


_ALL_MARKS = "".join(each if isinstance(each, str) else "".join(each) for each in vars(forest.UNICODE).values())


def legend(report: Report) -> str:
    """Say how to read the numbers."""
    return (
        f"B/A: below 1 B takes less time (or memory) than A, above 1 more. Shaded: the margin of "
        f"{percent(report.margin)}. sees: the smallest difference that these launches would have told from none."
    )


def _letters(count: int) -> list[str]:
    return ["A", *(["B"] if count == 2 else [f"B{number}" for number in range(1, count)])][:count]


def _interval(row: forest.Row) -> str:
    return interval_of(row.low, row.high)


def _ends(plot: Forest, width: int) -> str:
    """Return the two directions of the axis, as far apart as the plot is wide."""
    left, right = f"< {plot.left}", f"{plot.right} >"
    return f"{left}{right:>{width - len(left)}}" if len(left) + len(right) < width else ""
