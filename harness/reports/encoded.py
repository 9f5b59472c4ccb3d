"""Anything printed, as an output can write it: names of strangers must not end a report with an encoding error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderableType

ONE_FOR_ONE = str.maketrans({"…": ".", "─": "-", "│": "|"})
"""Of equal width, so that columns stay in line."""


@dataclass(frozen=True)
class Encoded:
    """A renderable whose characters that the output lacks become others of the same width, at last ``?``."""

    inside: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inside, options):
            yield Segment(_spelled(segment.text, options.encoding), segment.style, segment.control)


def _spelled(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ONE_FOR_ONE).encode(encoding, "replace").decode(encoding)
    return text
