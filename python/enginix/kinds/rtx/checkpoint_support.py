"""What kind ``rtx`` takes: refusals that name the value and the kind that takes it.

``nix/kinds/rtx/checks.nix`` refuses the same at evaluation, by the same table.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.inputs import identify_checkpoint
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.rank_modules import LinearModule
from enginix.checkpoint.verify import algorithm_of
from enginix.errors import CheckpointError, ManifestError, UsageError
from enginix.integrity import require_unchanged
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.letter_case import to_kebab_case
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.model.rtx_limits import explain_length_dependence, explain_unfused_heads
from enginix.tables import load_table

UNQUANTIZED = "NO_QUANT"


def list_checkpoint_formats(config: CheckpointConfig) -> tuple[str, ...]:
    """Return the number formats of a checkpoint's matrices, sorted; NO_QUANT among them."""
    modules = [m for m in CheckpointLayout(config).rank(0) if isinstance(m, LinearModule) and m.quantizable]
    return tuple(sorted({algorithm_of(module, config) or UNQUANTIZED for module in modules}))


def check_checkpoint_support(
    config: CheckpointConfig, checkpoint: Path, architecture: str | None = None
) -> None:
    """Refuse a checkpoint that this kind cannot be built from.

    Args:
        architecture: the model's, where the checkpoint may have another name for it.

    Raises:
        CheckpointError: its architecture, dtype, ranks, number format, KV cache, head size, activation or
            rotation is not taken; says which kind takes it.
    """
    table = load_table("rtx")

    def refuse(what: str, fix: str) -> None:
        raise CheckpointError(f"kind rtx: {what}", where=checkpoint / "config.json", fix=fix)

    if config.architecture not in table["architectures"]["taken"]:
        taken = ", ".join(table["architectures"]["taken"])
        fix = "serve the model with the llmapi kind"
        if config.quantization.quant_algo is not None:
            fix = "use a kind that enginix compare MODEL lists, or serve this one with the llmapi kind"
        with limited_llmapi_advice(architecture or config.architecture):
            refuse(f"{config.architecture} is not taken; taken are {taken}", fix)
    if config.mapping.world_size != 1:
        refuse(
            f"the checkpoint has {config.mapping.world_size} ranks, and an engine runs on one GPU",
            "convert with --tensor-parallel 1, or use kind tensorrt or llmapi",
        )
    if config.dtype not in table["dtypes"]["taken"]:
        refuse(
            f"dtype {config.dtype} has no fused attention",
            "convert with --dtype bfloat16, or use kind reference",
        )
    if config.quantization.kv_cache_quant_algo is not None:
        refuse(
            f"a KV cache in {config.quantization.kv_cache_quant_algo} is refused by TensorRT for RTX",
            "convert or quantize the model without --kv-cache, or use kind tensorrt or llmapi",
        )
    for name in list_checkpoint_formats(config):
        if name not in table["formats"]["taken"]:
            taken = ", ".join(table["formats"]["taken"])
            refuse(f"number format {name} is not taken; taken are {taken}", "use kind llmapi or tensorrt")
    if why := explain_unfused_heads(config.head_size):
        refuse(why, "use kind llmapi or reference")
    if config.hidden_act not in ("silu", "swiglu"):
        refuse(f"hidden_act is {config.hidden_act}, not silu", "use kind llmapi")
    scaling = (config.rotary_scaling or {}).get("rope_type") or "default"
    embedding = config.position_embedding_type
    if why := explain_length_dependence(scaling if embedding == "rope_gpt_neox" else embedding):
        refuse(why, "use kind llmapi or reference")


def resolve_targets(formats: Collection[str], requested: Sequence[int] | None) -> tuple[int, ...]:
    """Return the SMs of an engine: those requested, or all that its number formats allow.

    Raises:
        UsageError: a number format or the library refuses a requested SM.
    """
    rows = load_table("rtx")["formats"]["taken"]
    able = [sm for sm in rows[UNQUANTIZED] if all(sm in rows[name] for name in formats)]
    for sm in requested or ():
        if sm not in able:
            raise UsageError(
                f"SM {sm}: TensorRT for RTX takes {' and '.join(sorted(formats))} for SM "
                f"{', '.join(map(str, able))} alone",
                fix=f"leave --sm out, or use another kind: enginix compare MODEL --target sm{sm} lists them",
            )
    return tuple(sorted(set(requested or able)))


def resolve_engine_shape(limits: dict[str, int | None], context: int) -> EngineShape:
    """Return an engine's sizes, with the table's defaults.

    Args:
        limits: maxBatchSize, maxSeqLen and stepTokens; None takes the default.
        context: the model's, in tokens.

    Raises:
        UsageError: a limit is out of range, or above the model's context; names its flag.
    """
    rows: dict[str, Any] = load_table("rtx")["limits"]
    most = {name: rows[name]["most"] for name in limits}
    most["maxSeqLen"] = min(most["maxSeqLen"], context)
    values = {}
    for name, given in limits.items():
        value = min(rows[name]["default"], most[name]) if given is None else given
        if not 1 <= value <= most[name]:
            raise UsageError(f"--{to_kebab_case(name)} is {value}", fix=f"pass 1 to {most[name]}")
        values[name] = value
    return EngineShape(values["maxBatchSize"], values["stepTokens"], values["maxSeqLen"])


def require_engine_checkpoint(engine: Path, checkpoint: Path) -> None:
    """Refuse a checkpoint that an engine was not built from.

    Raises:
        ManifestError: it is another one, or it changed.
    """
    built_from = manifest.read_manifest(engine, "engine").inputs.get("checkpoint")
    identity = identify_checkpoint(checkpoint)
    if built_from != identity:
        raise ManifestError(
            f"the engine was built from another checkpoint than {checkpoint}, or that one changed",
            where=engine,
            fix="pass the checkpoint that the engine was built from",
        )
    require_unchanged(checkpoint)
