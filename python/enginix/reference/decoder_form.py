"""How decoders of further families compute, by TensorRT-LLM's class and the checkpoint's ``config.json``.

Not the converter's rows: the judge of a conversion reads a checkpoint by its own description of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class DecoderForm:
    """What one decoder does beside attention and its sizes; the defaults are those of Llama.

    Attributes:
        norm: ``rms``, or ``layer`` for LayerNorm.
        norm_bias: norms have biases.
        activation: of the MLP; every ``gelu`` is the one by tanh, which is TensorRT-LLM's.
        gated: the MLP multiplies by a gate.
        positions: ``halves`` and ``pairs`` are rotations; ``learned`` vectors are added to the embedding,
            ``alibi`` to the scores.
        alibi_bias_max, alibi_is_scaled: of ALiBi's slopes; Falcon divides them by the root of the head size.
        embedding_norm: the embedding is normalised.
        mlp_norm: the norm before the MLP; in parallel with attention it reads the layer's input.
        parallel: attention and MLP read the same input, and both are added to it.
        qkv_bias, dense_bias, mlp_bias, head_bias: which matrices have biases.
        output_norms: what attention and MLP return is normalised before it is added (Gemma 2).
        score_cap, logits_cap: c · tanh(x / c) of scores and logits.
        bias_of_first_rank: ``mlp.proj.bias`` is on rank 0, and zeros elsewhere.
        embedding_factor, residual_factor, score_factor, logits_factor: multipliers.
    """

    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    activation: Literal["silu", "gelu", "relu", "squared_relu"] = "silu"
    gated: bool = True
    positions: Literal["halves", "pairs", "learned", "alibi"] = "halves"
    alibi_bias_max: float = 8.0
    alibi_is_scaled: bool = False
    embedding_norm: bool = False
    mlp_norm: str = "post_layernorm"
    parallel: bool = False
    qkv_bias: bool = False
    dense_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    output_norms: bool = False
    score_cap: float | None = None
    logits_cap: float | None = None
    bias_of_first_rank: bool = False
    embedding_factor: float = 1.0
    residual_factor: float = 1.0
    score_factor: float = 1.0
    logits_factor: float = 1.0


_GPT = DecoderForm(norm="layer", norm_bias=True, activation="gelu", gated=False)
_BIASED = replace(_GPT, qkv_bias=True, dense_bias=True, mlp_bias=True)
_MPT = DecoderForm(norm="layer", activation="gelu", gated=False, positions="alibi")
# Architecture → its form without what config.json decides.
FORMS: dict[str, DecoderForm] = {
    "GPT2LMHeadModel": replace(_BIASED, positions="learned"),
    "GPTBigCodeForCausalLM": replace(_BIASED, positions="learned"),
    "Starcoder2ForCausalLM": _GPT,
    "NemotronForCausalLM": replace(_GPT, activation="squared_relu"),
    "GraniteForCausalLM": DecoderForm(),
    "GPTNeoXForCausalLM": replace(_BIASED, parallel=True, mlp_norm="post_attention_layernorm"),
    "GPTJForCausalLM": replace(
        _GPT,
        positions="pairs",
        parallel=True,
        mlp_norm="input_layernorm",
        mlp_bias=True,
        head_bias=True,
        bias_of_first_rank=True,
    ),
    "OPTForCausalLM": replace(_BIASED, positions="learned", activation="relu"),
    "PhiForCausalLM": replace(_BIASED, parallel=True, mlp_norm="input_layernorm", head_bias=True),
    "FalconForCausalLM": _GPT,
    "BloomForCausalLM": replace(_BIASED, positions="alibi", embedding_norm=True),
    "MptForCausalLM": _MPT,
    "MPTForCausalLM": _MPT,
    "GemmaForCausalLM": DecoderForm(activation="gelu"),
    "Gemma2ForCausalLM": DecoderForm(
        activation="gelu", mlp_norm="pre_feedforward_layernorm", output_norms=True
    ),
    "CohereForCausalLM": DecoderForm(
        norm="layer", positions="pairs", parallel=True, mlp_norm="input_layernorm"
    ),
}
_POSITIONS = {
    "halves": "rope_gpt_neox",
    "pairs": "rope_gptj",
    "learned": "learned_absolute",
    "alibi": "alibi",
}


_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "squared-relu": "squared_relu",
}


def compute_alibi_slopes(form: DecoderForm, heads: int, head_size: int) -> list[float]:
    """Return the slope of each head: a geometric series, and for other counts than powers of two every second
    term of the next longer series behind it (arXiv 2108.12409)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** -(form.alibi_bias_max * i / power) for i in range(1, power + 1)]
    slopes += [2 ** -(form.alibi_bias_max * i / (2 * power)) for i in range(1, 2 * (heads - power), 2)]
    factor = 1 / math.sqrt(head_size) if form.alibi_is_scaled else 1.0
    return [slope * factor for slope in slopes]


def _complete_gemma2(form: DecoderForm, raw: Mapping[str, Any], head_size: int) -> DecoderForm:
    scalar = raw.get("query_pre_attn_scalar")
    caps = [raw.get(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")]
    if not isinstance(scalar, (int, float)) or scalar <= 0:
        raise ValueError(f"query_pre_attn_scalar {scalar!r}")
    if any(cap is not None and (not isinstance(cap, (int, float)) or cap <= 0) for cap in caps):
        raise ValueError(f"soft-capping {caps}")
    return replace(form, score_factor=math.sqrt(head_size / scalar), score_cap=caps[0], logits_cap=caps[1])


def find_form(architecture: str, raw: Mapping[str, Any], hidden_size: int, head_size: int) -> DecoderForm:
    """Return the form of a checkpoint.

    Raises:
        ValueError: the executor does not compute what a key asks for; the message names it.
    """
    form = FORMS[architecture]
    position = raw.get("position_embedding_type", "learned_absolute")
    if architecture == "FalconForCausalLM" and position == "alibi_with_scale":
        form, position = replace(form, positions="alibi", alibi_is_scaled=True), "alibi"
    if position != _POSITIONS[form.positions]:
        raise ValueError(f"position_embedding_type {position} of {architecture}")
    if _ACTIVATIONS.get(str(raw.get("hidden_act", "gelu"))) != form.activation:
        raise ValueError(f"hidden_act {raw.get('hidden_act')} of {architecture}")
    if raw.get("do_layer_norm_before") is False:
        raise ValueError("norms behind the layers (do_layer_norm_before false)")
    bias = raw.get("bias") is True
    if architecture in ("Starcoder2ForCausalLM", "FalconForCausalLM"):
        form = replace(form, qkv_bias=bias, dense_bias=bias, mlp_bias=bias)
    if architecture == "FalconForCausalLM" and raw.get("parallel_attention") is not False:
        two_norms = raw.get("new_decoder_architecture") is True and raw.get("num_ln_in_parallel_attn") == 2
        form = replace(form, parallel=True, mlp_norm="mlp_layernorm" if two_norms else "input_layernorm")
    if form.positions == "alibi":
        form = replace(form, alibi_bias_max=float(raw.get("alibi_bias_max", 8.0)))
    if architecture == "Gemma2ForCausalLM":
        form = _complete_gemma2(form, raw, head_size)
    if architecture in ("GemmaForCausalLM", "Gemma2ForCausalLM"):
        return replace(form, embedding_factor=math.sqrt(hidden_size))
    if architecture == "GraniteForCausalLM":
        form = replace(form, qkv_bias=raw.get("attn_bias") is True, dense_bias=raw.get("attn_bias") is True)
        form = replace(form, mlp_bias=raw.get("mlp_bias") is True)
    return replace(
        form,
        embedding_factor=float(raw.get("embedding_multiplier", 1.0)),
        residual_factor=float(raw.get("residual_multiplier", 1.0)),
        score_factor=float(raw.get("attention_multiplier", 1.0)),
        logits_factor=float(raw.get("output_multiplier_scale", 1.0)),
    )
