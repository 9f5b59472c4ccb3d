"""What a workload's constructor is told: checked, with messages that say what to write instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

    from harness.interfaces import WorkloadTraits


def chosen_size(traits: WorkloadTraits, size: str | None) -> str:
    """Return the size asked for, or the default one.

    Raises:
        ValueError: for a name that is no size, listing those that are.
    """
    name = traits.default_size if size is None else size
    if name not in traits.sizes:
        raise ValueError(f"unknown size {name!r}; the sizes are {', '.join(traits.sizes)}")
    return name


def refuse_data(data: str | None, instead: str) -> None:
    """Refuse a data file.

    Raises:
        ValueError: where ``data`` is given; ``instead`` says what the workload reads.
    """
    if data is not None:
        raise ValueError(f"data = {data!r}: this workload reads no file of yours, but {instead}; leave data out")


def dropout_probability(value: float) -> float:
    """Return a dropout probability.

    Raises:
        ValueError: unless it is a number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"dropout = {value!r}: expected a number of at least 0 and below 1")
    return float(value)


def switch(name: str, value: object) -> bool:
    """Return a yes-or-no option.

    Raises:
        ValueError: unless it is true or false.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: expected true or false")  # noqa: TRY004  # what a user wrote is a value
    return value


def whole_number(name: str, value: object, lowest: int, highest: int | None = None) -> int:
    """Return an integer option.

    Raises:
        ValueError: unless it is a whole number from ``lowest`` to ``highest``.
    """
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
    if not fits or (highest is not None and value > highest):  # type: ignore[operator]  # fits: it is an int
        upper = "" if highest is None else f" and at most {highest}"
        raise ValueError(f"{name} = {value!r}: expected a whole number of at least {lowest}{upper}")
    assert isinstance(value, int)
    return value


def resized(traits: WorkloadTraits, name: str, **changes: object) -> WorkloadTraits:
    """Return traits whose size ``name`` has other values: what one instance was told differs from its class."""
    size = traits.sizes[name].model_copy(update=changes)
    return traits.model_copy(update={"sizes": {**traits.sizes, name: size}})


def size_facts(traits: WorkloadTraits, name: str) -> dict[str, JsonValue]:
    """Return what a record should say of one size: its name, its target, whether its data are synthetic."""
    size = traits.size(name)
    target = None if size.target is None else size.target.model_dump()
    return {"size": name, "target": target, "synthetic": size.synthetic}
