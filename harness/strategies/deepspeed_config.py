"""The configuration that a DeepSpeed engine gets: everything that decides the mathematics is written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from harness.spec import Precision, RunSpec

_OWN = ("communication_dtype", "grad_accum_dtype", "pin_memory", "offload_parameters")
"""Options of ours that stand elsewhere than in DeepSpeed's ``zero_optimization`` section."""

REDUCE_BUCKET = 500_000_000
"""Elements: DeepSpeed's default for ``reduce_bucket_size``. It allocates all of it: no more than the model has."""


def configuration(
    spec: RunSpec,
    stage: int,
    options: Mapping[str, JsonValue],
    optimizer: Mapping[str, JsonValue] | None,
    *,
    elements: int,
    world_size: int,
    offload: bool,
) -> dict[str, JsonValue]:
    """Return DeepSpeed's config for one run.

    Args:
        spec: with every default resolved.
        stage: of ZeRO.
        options: the strategy's, complete.
        optimizer: the ``optimizer`` section; None: it is passed in.
        elements: trainable ones of the model.
        world_size: ranks that share the global batch.
        offload: keep optimizer state in host memory.
    """
    batch = spec.global_batch or 1
    gradients = options.get("communication_dtype") or ("bf16" if spec.precision == "bf16-pure" else None)
    config: dict[str, JsonValue] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // (world_size * spec.accumulation),
        "gradient_accumulation_steps": spec.accumulation,
        # Always: what is left out means clipping at 1.0.
        "gradient_clipping": spec.clip_norm or 0.0,
        # Accepted beside its own: the plan, not a list of types, says which algorithms may be flattened.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(stage, options, elements, offload=offload),
        # The harness measures; DeepSpeed's own timer would synchronise the device twice in every step.
        "timers": {"throughput": {"enabled": False}},
    }
    config |= _precision(spec.precision, stage)
    if gradients is not None:
        config["communication_data_type"] = gradients
    if options.get("grad_accum_dtype") is not None:
        config["data_types"] = {"grad_accum_dtype": options["grad_accum_dtype"]}
    if optimizer is not None:
        config["optimizer"] = dict(optimizer)
    return config


def _precision(precision: Precision, stage: int) -> dict[str, JsonValue]:
    """Return the section for the precision.

    Under autocast no module counts as safe for bf16 gradients: they are reduced in fp32, as DDP does. With
    bf16-pure stage 0 has nothing to write: DeepSpeed's bf16 mode would keep fp32 masters there, and without it the
    optimizer steps on the bf16 parameters themselves.
    """
    if precision == "bf16":
        return {
            "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }
    if precision == "bf16-master":
        return {"bf16": {"enabled": True}}
    if precision == "bf16-pure" and stage > 0:
        return {
            "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
        }
    if precision == "fp16":
        return {"fp16": {"enabled": True, "auto_cast": True, "loss_scale": 0}}
    return {}


def _zero(stage: int, options: Mapping[str, JsonValue], elements: int, *, offload: bool) -> dict[str, JsonValue]:
    section: dict[str, JsonValue] = {"stage": stage}
    section |= {key: value for key, value in options.items() if key not in _OWN}
    if "reduce_bucket_size" in section and section["reduce_bucket_size"] is None:
        section["reduce_bucket_size"] = min(REDUCE_BUCKET, elements)
    if offload:
        host: dict[str, JsonValue] = {"device": "cpu", "pin_memory": options["pin_memory"]}
        section["offload_optimizer"] = host
        if options.get("offload_parameters"):
            section["offload_param"] = dict(host)
    return section
