"""Names from strangers as they may be shown: no control character, nothing that the output cannot encode."""

from __future__ import annotations

from rich.text import Text

ASCII = {"…": "...", "≥": ">=", "≤": "<=", "×": "x", "±": "+-", "–": "-", "—": "-", "’": "'"}  # noqa: RUF001  # these are what is replaced
"""What our own sentences use, spelled for an output that knows ASCII alone."""


def printable(text: str, longest: int | None = None) -> str:
    """Return one line without control characters, marks of writing direction or lone surrogates.

    Args:
        text: anything.
        longest: characters to keep; None: all.
    """
    line = "".join(each if each.isprintable() else _escaped(each) for each in text)
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def copied(line: str, style: str = "") -> Text:
    """Return a line to be copied, which is never broken; the console must not crop either."""
    return Text(printable(line), style=style, no_wrap=True, overflow="ignore")


def encodable(text: str, encoding: str) -> str:
    """Return the text as an output of this encoding can write it; what it lacks becomes a question mark."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        spelled = "".join(ASCII.get(each, each) for each in text)
        return spelled.encode(encoding, "replace").decode(encoding)
    return text


def _escaped(character: str) -> str:
    return " " if character in "\n\t" else f"\\u{ord(character):04x}"
