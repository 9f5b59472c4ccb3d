"""The configuration that a DeepSpeed engine gets: everything that decides the mathematics is written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.spec import RunSpec

_OWN = ("communication_dtype", "pin_memory", "offload_parameters")
"""Options of ours that stand elsewhere than in DeepSpeed's ``zero_optimization`` section."""


def configuration(
    spec: RunSpec,
    stage: int,
    options: Mapping[str, JsonValue],
    optimizer: Mapping[str, JsonValue] | None,
    *,
    world_size: int,
    offload: bool,
) -> dict[str, JsonValue]:
    """Return DeepSpeed's config for one run.

    Args:
        spec: with every default resolved.
        stage: of ZeRO.
        options: the strategy's, complete.
        optimizer: the ``optimizer`` section; None: it is passed in.
        world_size: ranks that share the global batch.
        offload: keep optimizer state in host memory.
    """
    batch = spec.global_batch or 1
    config: dict[str, JsonValue] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // (world_size * spec.accumulation),
        "gradient_accumulation_steps": spec.accumulation,
        # Always: what is left out means clipping at 1.0.
        "gradient_clipping": spec.clip_norm or 0.0,
        # Accepted beside its own: the plan, not a list of types, says which algorithms may be flattened.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(stage, options, offload=offload),
        # The harness measures; DeepSpeed's own timer would synchronise the device twice in every step.
        "timers": {"throughput": {"enabled": False}},
    }
    if options.get("communication_dtype") is not None:
        config["communication_data_type"] = options["communication_dtype"]
    if optimizer is not None:
        config["optimizer"] = dict(optimizer)
    return config


def _zero(stage: int, options: Mapping[str, JsonValue], *, offload: bool) -> dict[str, JsonValue]:
    section: dict[str, JsonValue] = {"stage": stage}
    section |= {key: value for key, value in options.items() if key not in _OWN}
    if offload:
        host: dict[str, JsonValue] = {"device": "cpu", "pin_memory": options["pin_memory"]}
        section["offload_optimizer"] = host
        if options.get("offload_parameters"):
            section["offload_param"] = dict(host)
    return section
