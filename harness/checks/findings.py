"""What the checks of a run found, by name: for the record, and the error that ends a wrong run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import WrongAnswerError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from harness.verification.certificate import Verdict


class Findings:
    """The latest verdict of each check; ``wrong`` stays."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Verdict, str]] = {}
        self._remedies: dict[str, str] = {}
        self._broken: str | None = None

    def passed(self, name: str, detail: str) -> None:
        """Note that nothing was wrong."""
        self._note(name, "passed", detail)

    def recorded(self, name: str, detail: str) -> None:
        """Note something to know that is no fault."""
        self._note(name, "recorded", detail)

    def not_applicable(self, name: str, detail: str) -> None:
        """Note that this could not be looked at, unless it was looked at before."""
        if name not in self._found:
            self._note(name, "not applicable", f"{detail}{f' ({self._broken})' if self._broken else ''}")

    def wrong(self, name: str, detail: str, remedy: str) -> None:
        """Note a wrong answer; `settle` raises it."""
        self._note(name, "wrong", detail)
        self._remedies.setdefault(name, remedy)

    def broken(self, error: Exception) -> None:
        """Note why a look failed."""
        self._broken = f"{type(error).__name__}: {error}"

    def _note(self, name: str, verdict: Verdict, detail: str) -> None:
        before = self._found.get(name)
        if before is None or before[0] != "wrong":
            self._found[name] = (verdict, detail)

    def settle(self) -> None:
        """Go on where nothing is wrong.

        Raises:
            WrongAnswerError: naming the first check that failed, what it found and what to do.
        """
        for name, remedy in self._remedies.items():
            raise WrongAnswerError(f"check of {name}: {self._found[name][1]}; {remedy}")

    def facts(self) -> dict[str, JsonValue]:
        """Return name -> verdict and detail."""
        return {name: {"verdict": verdict, "detail": detail} for name, (verdict, detail) in self._found.items()}
