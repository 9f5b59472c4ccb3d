"""What tells runs apart, in words: whatever varies between their specs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.spec import OPTION_TABLES, RunSpec, default_warmup

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pydantic import JsonValue


def varying(specs: Sequence[Mapping[str, JsonValue]], shown: Collection[str] = ()) -> list[str]:
    """Return for each run the values, ``lr=0.01 optimizer.eps=1e-06``, of every field that not all of them share.

    Args:
        specs: as records hold them; options count one by one.
        shown: fields that stand beside these words anyway.
    """
    flat = [{key: value for key, value in flattened(spec).items() if key not in shown} for spec in specs]
    names = list(dict.fromkeys(name for each in flat for name in each))
    told = [name for name in names if len({word_of(each.get(name)) for each in flat}) > 1]
    return [
        " ".join(f"{name}={word_of(each[name])}" for name in told if each.get(name) is not None) for each in flat
    ]


def flattened(spec: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a spec whose tables of options are taken apart into ``optimizer.NAME``."""
    heads = {name: head for head, name in OPTION_TABLES.items()}
    found: dict[str, JsonValue] = {}
    for field, value in spec.items():
        if field in heads and isinstance(value, dict):
            found |= {f"{heads[field]}.{key}": inner for key, inner in value.items()}
        else:
            found[field] = value
    return found


def unusual(spec: Mapping[str, JsonValue], shown: Collection[str] = ()) -> dict[str, JsonValue]:
    """Return a spec's options and fields that are not as `RunSpec` has them by default, but for those shown."""
    usual = {name: field.get_default(call_default_factory=True) for name, field in RunSpec.model_fields.items()}
    usual["collectors"] = list(usual["collectors"])
    steps = spec.get("steps")
    usual["warmup_steps"] = default_warmup(steps) if isinstance(steps, int) else None
    return {
        name: value
        for name, value in flattened(spec).items()
        if name not in shown and value is not None and value != usual.get(name)
    }


def word_of(value: JsonValue) -> str:
    """Return a value as the command line takes it: ``0.01``, ``true``, ``[0.9,0.95]``, a bare word."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
