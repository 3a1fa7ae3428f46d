"""The checkpoint and GPU that a request to trtllm-build is about, and its refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginix.errors import UsageError
from enginix.tables import load_table


class RequestRefused(UsageError):
    """trtllm-build ends this request with an exception.

    Attributes:
        exception: the exception's class.
        about: the exception's subject, in the terms of tests/golden/requests.jsonl.xz.
    """

    def __init__(self, exception: str, about: str, what: str, *, fix: str | None = None) -> None:
        self.exception = exception
        self.about = about
        super().__init__(f"trtllm-build ends with {exception}: {what}", fix=fix)


def make_refusal(name: str, about: str | None = None, **values: Any) -> RequestRefused:
    """Return a refusal of build_effects.json.

    Args:
        about: what the row leaves open.
        values: what its texts name in braces.
    """
    row = load_table("build_effects")["refused"][name]
    what, fix = (row[key].format(**values) for key in ("what", "fix"))
    return RequestRefused(row["exception"], about or row["about"], what, fix=fix)


@dataclass(frozen=True)
class BuildSubject:
    """The checkpoint's configuration and the GPU of a request.

    Attributes:
        quantization, kv_cache: ``quant_algo`` and ``kv_cache_quant_algo``.
        max_draft_len, num_eagle_layers: sizes of a checkpoint with a draft model of its own.
        redrafter_tokens: ``redrafter_num_beams`` × ``redrafter_draft_len_per_beam``.
        rotary_scaling: as the checkpoint has it.
        is_pruned: whether the checkpoint has no weights; its plan is stripped.
    """

    architecture: str | None
    sm: int
    quantization: str | None = None
    kv_cache: str | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context: int | None = None
    dtype: str = "bfloat16"
    max_draft_len: int | None = None
    num_eagle_layers: int | None = None
    redrafter_tokens: int | None = None
    rotary_scaling: Mapping[str, Any] | None = None
    qwen_type: str | None = None
    is_pruned: bool = False


def make_build_subject(checkpoint: Mapping[str, Any], sm: int) -> BuildSubject:
    """Return the build subject of a checkpoint's config.json, whole or with flat keys as in golden requests.

    Raises:
        UsageError: a value has another type.
    """

    def read(group: str | None, key: str, kind: type) -> Any:
        inner = checkpoint.get(group) if group else None
        value = (inner if isinstance(inner, dict) else checkpoint).get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UsageError(f"{key} is {value!r}", where="checkpoint", fix="convert the model again")
        return value

    beams, length = (read(None, f"redrafter_{n}", int) for n in ("num_beams", "draft_len_per_beam"))
    return BuildSubject(
        architecture=read(None, "architecture", str),
        sm=sm,
        quantization=read("quantization", "quant_algo", str),
        kv_cache=read("quantization", "kv_cache_quant_algo", str),
        tensor_parallel=read("mapping", "tp_size", int) or 1,
        pipeline_parallel=read("mapping", "pp_size", int) or 1,
        context=read(None, "max_position_embeddings", int),
        dtype=read(None, "dtype", str) or "bfloat16",
        max_draft_len=read(None, "max_draft_len", int),
        num_eagle_layers=read(None, "num_eagle_layers", int),
        redrafter_tokens=None if beams is None or length is None else beams * length,
        rotary_scaling=read(None, "rotary_scaling", dict),
        qwen_type=read(None, "qwen_type", str),
        is_pruned=checkpoint.get("is_pruned") is True,
    )
