"""Checkpoints of further families, converted from random models: the executor against transformers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.errors import CheckpointError
from enginix.evaluation.judgement.logits import relative_error
from enginix.reference import Executor
from enginix.reference.config import parse_executor_config
from enginix.reference.decoder_form import FORMS

# Sums in another order; and GELU by tanh, as TensorRT-LLM has it, where the model has the exact one.
EXACT, BY_TANH = 2e-6, 1e-3
# Caps that this model's scores and logits reach; no window, since the executor has none.
GEMMA2 = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0, "sliding_window": 64}
MODELS: list[tuple[str, dict[str, Any], float]] = [
    ("GPT2LMHeadModel", {}, EXACT),
    ("GPT2LMHeadModel", {"tie_word_embeddings": False}, EXACT),
    ("GPTBigCodeForCausalLM", {"num_key_value_heads": 1}, EXACT),
    ("Starcoder2ForCausalLM", {}, EXACT),
    ("Starcoder2ForCausalLM", {"use_bias": False, "tie_word_embeddings": False}, EXACT),
    ("NemotronForCausalLM", {"head_dim": 8}, EXACT),
    ("GraniteForCausalLM", {"attention_bias": True}, EXACT),
    (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.2,
            "logits_scaling": 8.0,
        },
        EXACT,
    ),
    ("GPTNeoXForCausalLM", {"intermediate_size": 128}, BY_TANH),
    ("GPTJForCausalLM", {"rotary_dim": 4}, EXACT),
    ("OPTForCausalLM", {"ffn_dim": 128, "word_embed_proj_dim": 32}, EXACT),
    ("OPTForCausalLM", {"ffn_dim": 128, "word_embed_proj_dim": 16}, EXACT),
    ("PhiForCausalLM", {"num_key_value_heads": 4}, EXACT),
    ("FalconForCausalLM", {}, BY_TANH),
    ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}, BY_TANH),
    (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        BY_TANH,
    ),
    (
        "FalconForCausalLM",
        {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
        BY_TANH,
    ),
    ("BloomForCausalLM", {}, EXACT),
    ("BloomForCausalLM", {"n_head": 6, "hidden_size": 48}, EXACT),
    ("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 32}, BY_TANH),
    ("GemmaForCausalLM", {"head_dim": 8}, EXACT),
    ("Gemma2ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 3, **GEMMA2}, EXACT),
    ("CohereForCausalLM", {}, EXACT),
    ("CohereForCausalLM", {"head_dim": 12}, EXACT),
]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
    "intermediate_size": 64, "max_position_embeddings": 32, "num_key_value_heads": 2, "n_embd": 32,
    "n_layer": 3, "n_head": 4, "n_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def save_model(directory: Path, name: str, keys: dict[str, Any]) -> Any:
    """Save a random float32 model whose values are large enough for every part to matter; return it."""
    import transformers

    stem = {"GPT2LMHeadModel": "GPT2"}.get(name, name.removesuffix("ForCausalLM"))
    torch.manual_seed(3)
    model = getattr(transformers, name)(getattr(transformers, f"{stem}Config")(**(SIZES | keys)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if name == "Gemma2ForCausalLM":
        model.set_attn_implementation("eager")  # the only one with soft-capping
    model.float().eval().save_pretrained(directory)
    return model


def convert_float32(model: Path, out: Path, tp: int = 1) -> Path:
    convert_model(model, out, ConvertOptions(dtype="float32", mapping=CheckpointMapping(tp), kind="tensorrt"))
    return out


@pytest.mark.parametrize(("name", "keys", "tolerance"), MODELS)
def test_same_logits_as_transformers(
    name: str, keys: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    """Prompts, packed prompts and single steps, of one rank and of two."""
    model = save_model(tmp_path / "model", name, keys)
    prompts = [torch.randint(3, 64, (count,)).tolist() for count in (20, 20, 7)]
    with torch.inference_mode():
        expected = [model(torch.tensor([ids])).logits[0] for ids in prompts]
    for tp in (1, 2):
        executor = Executor.load(convert_float32(tmp_path / "model", tmp_path / f"out{tp}", tp))
        # As on a GPU: prompts are packed, and with two ranks here decode steps have static shapes.
        executor.prompt_tokens, executor.steps_ahead = 64, tp - 1
        for theirs, ours in zip(expected, executor.forward(prompts), strict=True):
            assert relative_error(ours, theirs).max() < tolerance
        cache = executor.new_cache(3)
        executor.prefill(cache, 0, prompts[1])
        logits = executor.prefill(cache, 2, prompts[0][:5])
        for token in prompts[0][5:]:
            logits = executor.decode(cache, {2: token})[2]
        assert relative_error(logits[None], expected[0][-1:]).max() < tolerance


@pytest.mark.parametrize("key", ["position_embedding_type", "hidden_act"])
def test_every_form_is_told_from_another(key: str, tmp_path: Path) -> None:
    """A checkpoint that asks for another computation than the class's is refused."""
    save_model(tmp_path / "model", "PhiForCausalLM", {"num_key_value_heads": 4})
    out = convert_float32(tmp_path / "model", tmp_path / "out")
    raw = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(raw | {key: "alibi" if key[0] == "p" else "tanh"}))
    with pytest.raises(CheckpointError, match=r"alibi|tanh"):
        Executor.load(out)


def test_what_the_executor_does_not_compute_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "CohereForCausalLM", {"use_qk_norm": True})
    with pytest.raises(CheckpointError, match="qk_layernorm") as e:
        Executor.load(convert_float32(tmp_path / "model", tmp_path / "out"))
    assert "convert" not in (e.value.fix or "")  # another conversion gives the same checkpoint


def test_a_bias_on_every_rank_is_refused(tmp_path: Path) -> None:
    """GPT-J's ranks are summed: a bias on two of them would be added twice."""
    save_model(tmp_path / "model", "GPTJForCausalLM", {"rotary_dim": 4})
    out = convert_float32(tmp_path / "model", tmp_path / "out", 2)
    data = bytearray((out / "rank1.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin = 8 + length + header["transformer.layers.0.mlp.proj.bias"]["data_offsets"][0]
    data[begin : begin + 4] = b"\0\0\200?"
    (out / "rank1.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="would be added twice"):
        Executor.load(out)


@pytest.mark.parametrize(
    ("name", "keys", "has_class"),
    [
        ("OPTForCausalLM", {"do_layer_norm_before": False}, False),
        ("MptForCausalLM", {"clip_qkv": 0.05}, False),
        ("Starcoder2ForCausalLM", {"qk_layernorm": True}, True),
    ],
)
def test_a_refusal_proposes_llmapi_where_that_has_the_class(
    name: str, keys: dict[str, Any], has_class: bool, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", name, next(saved for named, saved, _ in MODELS if named == name))
    raw = json.loads((convert_float32(tmp_path / "model", tmp_path / "out") / "config.json").read_text())
    with pytest.raises(CheckpointError) as e:
        parse_executor_config(raw | keys, "config.json")
    assert ("llmapi kind" in str(e.value.fix)) == has_class
    assert ("with transformers" in str(e.value.fix)) != has_class
    with pytest.raises(CheckpointError, match="'X' is unknown to the reference executor; known: Bloom") as e:
        parse_executor_config(raw | {"architecture": "X"}, "config.json")
    # TensorRT-LLM's engines have no class X either.
    assert "serve the model with transformers" in str(e.value.fix)
    assert "kind tensorrt" not in str(e.value.fix)
    with pytest.raises(CheckpointError, match="'DbrxForCausalLM' is unknown to the reference executor") as e:
        parse_executor_config(raw | {"architecture": "DbrxForCausalLM"}, "config.json")
    assert "kind tensorrt, or serve the model with transformers" in str(e.value.fix)


def test_every_form_is_tested() -> None:
    """MPTForCausalLM is the Hub's name of MptForCausalLM."""
    assert {name for name, _, _ in MODELS} | {"MPTForCausalLM"} == set(FORMS)


# Family → keys that a model may have, each with its values.
TOGGLES: dict[str, dict[str, list[Any]]] = {
    "GPT2LMHeadModel": {"tie_word_embeddings": [True, False], "n_inner": [None, 40]},
    "GPTBigCodeForCausalLM": {"num_key_value_heads": [1]},
    "Starcoder2ForCausalLM": {"use_bias": [True, False], "tie_word_embeddings": [True, False]},
    "NemotronForCausalLM": {"head_dim": [8, 16], "partial_rotary_factor": [0.5, 1.0]},
    "GraniteForCausalLM": {"attention_bias": [True, False], "logits_scaling": [1.0, 8.0]},
    "GPTNeoXForCausalLM": {"rotary_pct": [0.25, 0.5, 1.0]},
    "GPTJForCausalLM": {"rotary_dim": [4, 8]},
    "OPTForCausalLM": {},
    "PhiForCausalLM": {"partial_rotary_factor": [0.5, 1.0]},
    "FalconForCausalLM": {"new_decoder_architecture": [True, False], "bias": [True, False]},
    "BloomForCausalLM": {},
    "MptForCausalLM": {},
    "GemmaForCausalLM": {"head_dim": [8, 16]},
    "Gemma2ForCausalLM": {
        "head_dim": [8, 16],
        "query_pre_attn_scalar": [3, 8],
        **{k: [v] for k, v in GEMMA2.items()},
    },
    "CohereForCausalLM": {"logit_scale": [0.0625, 0.5]},
}


def draw_model(name: str, data: st.DataObject) -> dict[str, Any]:
    """Return random sizes and keys of a family, by every name that its class may read."""
    heads = data.draw(st.sampled_from([2, 4, 6]), "heads")
    hidden, layers = heads * data.draw(st.sampled_from([8, 16]), "head size"), data.draw(st.integers(1, 3))
    vocabulary, width = 2 * data.draw(st.integers(20, 60)), 4 * data.draw(st.integers(3, 30))
    # Classes of one width or of as many KV heads as heads refuse others by name.
    if name in ("GPTNeoXForCausalLM", "OPTForCausalLM", "FalconForCausalLM", "BloomForCausalLM"):
        width = 4 * hidden
    kv = data.draw(st.sampled_from([h for h in (1, 2, heads) if heads % h == 0]), "KV heads")
    if name in ("PhiForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM"):
        kv = heads
    if name in ("Gemma2ForCausalLM",) and kv == 1:
        kv = heads
    keys = {
        "hidden_size": hidden, "n_embd": hidden, "d_model": hidden, "word_embed_proj_dim": hidden,
        "num_hidden_layers": layers, "n_layer": layers, "n_layers": layers,
        "num_attention_heads": heads, "n_head": heads, "n_heads": heads,
        "num_key_value_heads": kv, "num_kv_heads": kv, "vocab_size": vocabulary,
        "intermediate_size": width, "ffn_dim": width, "max_seq_len": 32,
    }  # fmt: skip
    if name == "GPTBigCodeForCausalLM":
        keys["num_key_value_heads"] = 1
    return keys | {key: data.draw(st.sampled_from(values), key) for key, values in TOGGLES[name].items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGGLES)
@settings(max_examples=8)
@given(data=st.data())
def test_random_models_of_every_family(name: str, data: st.DataObject) -> None:
    """Converted at one rank and at two, with other sizes and keys: transformers' logits."""
    tolerance = next(t for n, _, t in MODELS if n == name)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        model = save_model(work / "model", name, draw_model(name, data))
        ids = torch.randint(3, 40, (20,)).tolist()
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0]
        for tp in (1, 2):
            executor = Executor.load(convert_float32(work / "model", work / f"out{tp}", tp))
            assert relative_error(executor.forward([ids])[0], expected).max() < 2 * tolerance
