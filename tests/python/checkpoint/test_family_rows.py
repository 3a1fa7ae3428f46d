"""Rows of family_rows.json: the kinds of arrangement, expressions, and what a row refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from family_models import MODELS, change_config, write_safetensors

import golden
from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping, check_parallelism, check_pipeline_support
from enginix.checkpoint.verify import verify_checkpoint
from enginix.errors import EnginixError, ModelError, UsageError
from enginix.hub.model_metadata import extract_model_metadata
from enginix.inspect import describe_model, open_model
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import plan_memory
from enginix.kinds.reference.reference_build import build_reference_engine
from enginix.machine.gpu_table import find_gpu
from enginix.memory_plan.weights import CheckpointSizes
from enginix.model import open_weights
from enginix.model.config import parse_config, read_model_config
from enginix.model.family_rows import evaluate_expression, list_family_rows
from enginix.report.kinds import compare_kinds, read_compared_model
from enginix.tables import load_table


def test_expressions() -> None:
    values = {"hf.a": 4, "hf.b": None, "n": 6}
    rule = {"case": [[{"hf.b": None, "hf.a": 4}, {"multiply": ["$n", "$hf.a"]}], [{}, 1]]}
    assert evaluate_expression(rule, values, "") == 24
    assert evaluate_expression({"divide": ["$n", {"sqrt": "$hf.a"}]}, values, "") == 3
    # True is not 1, and 1 is not 1.0.
    assert evaluate_expression({"case": [[{"hf.a": 4.0}, "yes"], [{}, "no"]]}, values, "") == "no"
    with pytest.raises(ModelError, match="b is None, not a positive number"):
        evaluate_expression({"multiply": ["$n", "$hf.b"]}, values, "x")


RULES = [
    (name, rule)
    for name, row in list_family_rows().items()
    for rule in row.get("refuse", ())
    if name in MODELS
]


@pytest.mark.parametrize(("name", "rule"), RULES, ids=lambda v: v if isinstance(v, str) else v["key"])
def test_what_a_checkpoint_cannot_express_is_refused_by_name(
    name: str, rule: dict[str, Any], tmp_path: Path
) -> None:
    """With a value that is not accepted: the other boolean, another number, or a text."""
    other: Any = "other"
    if isinstance(rule["accepts"][-1], bool):
        other = not rule["accepts"][-1]
    elif rule["key"] == "num_key_value_heads":
        other = 2
    key, _, inner = rule["key"].partition(".")
    raw = json.loads((MODELS[name] / "config.json").read_text())
    model = change_config(name, tmp_path, **{key: raw.get(key, {}) | {inner: other} if inner else other})
    variants = list_family_rows()[name].get("variants", {}).get("names", [None])
    with pytest.raises(ModelError) as e:
        read_model_config(model, variant=variants[0])
    assert rule["key"] in str(e.value) and e.value.fix


@pytest.mark.parametrize("name", sorted(list_family_rows()))
def test_model_types_are_those_of_the_causal_language_models(name: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    # Hub code: model_type of the configuration class beside each model.
    hub = {
        "ExaoneForCausalLM": "exaone", "InternLM2ForCausalLM": "internlm2", "QWenLMHeadModel": "qwen",
        "BaichuanForCausalLM": "baichuan", "ChatGLMModel": "chatglm", "MPTForCausalLM": "mpt",
        "ChatGLMForConditionalGeneration": "chatglm", "InternLMForCausalLM": "internlm",
        "DeepseekForCausalLM": "deepseek", "PhiMoEForCausalLM": "phimoe", "Phi3SmallForCausalLM": "phi3small",
    }  # fmt: skip
    old = {"RWForCausalLM": ["RefinedWeb", "RefinedWebModel"]}
    known = [kind for kind, loaded in NAMES.items() if loaded == name]
    assert list_family_rows()[name]["modelTypes"] == (known or old.get(name) or [hub[name]])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_keys_and_types_that_mean_another_function(name: str) -> None:
    raw = json.loads((MODELS[name] / "config.json").read_text())
    variant = list_family_rows()[name].get("variants", {}).get("names", [None])[0]
    for changes, says in (
        ({"model_type": "llama"}, "model_type is 'llama': transformers loads .* as LlamaForCausalLM"),
        ({"model_type": "helium"}, "as another class"),
        ({"is_causal": False}, "is_causal is False: transformers reads it for every class"),
        ({"attention_chunk_size": 8}, "attention_chunk_size is 8: transformers reads it for every class"),
        ({"num_kv_shared_layers": 1}, "num_kv_shared_layers is 1"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"layer_types": ["chunked_attention"]}, "layer_types"),
    ):
        with pytest.raises(ModelError, match=says) as e:
            parse_config(raw | changes, MODELS[name], variant=variant)
        assert e.value.fix
    layers = parse_config(raw, MODELS[name], variant=variant).num_layers
    neutral: dict[str, Any] = {"is_causal": True, "use_bidirectional_attention": None}
    if "window" not in list_family_rows()[name]:
        neutral["layer_types"] = ["full_attention"] * layers
    without_type = {key: value for key, value in raw.items() if key != "model_type"}
    assert parse_config(without_type | neutral, MODELS[name], variant=variant).architecture == name


def test_variants(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not tell which model") as e:
        read_model_config(MODELS["BaichuanForCausalLM"])
    assert "--variant one of v1_7b, v1_13b" in str(e.value.fix)
    model = change_config(
        "BaichuanForCausalLM", tmp_path, hidden_size=5120, vocab_size=125696, num_attention_heads=40
    )
    assert read_model_config(model).variant == "v2_13b"
    for name in ("BaichuanForCausalLM", "GPT2LMHeadModel"):
        with pytest.raises(UsageError, match="variant 'v3' is unknown"):
            read_model_config(MODELS[name], variant="v3")


@pytest.mark.parametrize(
    ("name", "option", "says"),
    [
        ("GemmaForCausalLM", {"quantize": "FP8_PER_CHANNEL_PER_TOKEN"}, "enginix quantize --format fp8"),
        ("BloomForCausalLM", {"quantize": "FP8_PER_CHANNEL_PER_TOKEN"}, "transformers"),
        ("BloomForCausalLM", {"kv_cache": "FP8"}, "transformers"),
    ],
)
def test_options_that_quantize_a_family_are_refused(
    name: str, option: dict[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{name} is not converted so") as e:
        convert_model(MODELS[name], tmp_path / "out", ConvertOptions(**option))  # type: ignore[arg-type]
    assert says in str(e.value.fix)


@pytest.mark.parametrize(
    ("name", "algorithm", "says"),
    [
        ("BloomForCausalLM", "FP8", "BloomForCausalLM unquantized only"),
        ("GemmaForCausalLM", "NVFP4", "in FP8, "),
    ],
)
def test_formats_of_no_golden_data_are_refused(name: str, algorithm: str, says: str, tmp_path: Path) -> None:
    quantized = {"quant_method": "modelopt", "quant_algo": algorithm}
    model = change_config(name, tmp_path, quantization_config=quantized)
    with pytest.raises(EnginixError, match=says):
        convert_model(model, tmp_path / "out", ConvertOptions())


@pytest.mark.parametrize("algorithm", ["FP8", "W4A16_MXFP4", "OWN"])
@pytest.mark.parametrize("name", ["DeepseekV2ForCausalLM", "PhiMoEForCausalLM", "BloomForCausalLM"])
def test_no_quantized_model_is_sent_to_transformers(name: str, algorithm: str, tmp_path: Path) -> None:
    """transformers reads the codes of a format that it does not know as if they were weights."""
    quantized = {"quant_method": "modelopt", "quant_algo": algorithm}
    model = change_config(name, tmp_path, quantization_config=quantized)
    with pytest.raises(EnginixError) as e:
        convert_model(model, tmp_path / "out", ConvertOptions())
    assert e.value.fix and "transformers" not in e.value.fix and "llmapi" not in e.value.fix
    assert algorithm != "FP8" or e.value.fix == "pass the unquantized model"


@pytest.mark.parametrize(
    ("name", "keys", "tensorrt"),
    [
        ("MPTForCausalLM", {"expansion_ratio": 2}, False),
        ("MPTForCausalLM", {"attn_config": {"alibi": True, "clip_qkv": 0.05}}, True),
        ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}, False),
        ("OPTForCausalLM", {"enable_bias": False}, False),
        ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, False),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 7}, True),
    ],
)
def test_plan_and_compare_refuse_what_conversion_and_build_refuse(
    name: str, keys: dict[str, Any], tensorrt: bool, tmp_path: Path
) -> None:
    model = change_config(name, tmp_path, **keys)
    rows = {row.kind: row for row in compare_kinds(read_compared_model(model), "h200")}
    takes = {"tensorrt": tensorrt, "reference": name == "Gemma2ForCausalLM"}
    whole = {row.kind: row for row in compare_kinds(read_compared_model(MODELS[name]), "h200")}
    for kind in takes:
        # MPT's golden model has a clip_qkv of its own.
        assert whole[kind].takes or (name, kind) == ("MPTForCausalLM", "reference")
        assert rows[kind].takes is takes[kind]
        with open_model(str(model)) as opened:
            obstacles = plan_memory(opened, find_gpu("h200"), PlanRequest(kind)).obstacles
        assert obstacles == (() if takes[kind] else rows[kind].why)
    if not tensorrt:
        with pytest.raises(EnginixError):
            convert_model(model, tmp_path / "out", ConvertOptions())
    elif not takes["reference"]:
        convert_model(model, tmp_path / "out", ConvertOptions())
        with pytest.raises(EnginixError, match="which the reference executor does not compute"):
            build_reference_engine(tmp_path / "out", model, tmp_path / "engine")


HEAD_DIM = ["Dbrx", "Falcon", "GPTNeoX", "Phi", "PhiMoE", "Starcoder2"]


@pytest.mark.parametrize("stem", HEAD_DIM)
def test_a_head_size_that_the_weights_do_not_have_is_refused(stem: str, tmp_path: Path) -> None:
    """GPT-NeoX rotates by it: the shapes are the same, and the logits are others."""
    name = f"{stem}ForCausalLM"
    size = read_model_config(MODELS[name]).head_dim
    assert read_model_config(change_config(name, tmp_path / "same", head_dim=size)).head_dim == size
    with pytest.raises(ModelError, match="head_dim is"):
        read_model_config(change_config(name, tmp_path / "other", head_dim=2 * size))


@pytest.mark.slow
def test_a_head_size_is_read_or_refused_where_transformers_reads_it() -> None:
    import inspect

    import transformers

    for name, row in list_family_rows().items():
        module = inspect.getmodule(getattr(transformers, name, None))
        if module is None or "modeling_" not in module.__name__ or "headSize" in row:
            continue
        if "head_dim" in row["defaults"] or '"head_dim"' not in (source := inspect.getsource(module)):
            continue
        assert "config" in source and "head_dim" in {rule["key"] for rule in row.get("refuse", ())}, name


@pytest.mark.parametrize("name", ["GPTJForCausalLM", "PhiForCausalLM"])
def test_a_tied_head_keeps_its_own_bias(name: str, tmp_path: Path) -> None:
    """The weights of the head are those of the embedding, the bias is stored as the head's."""
    row = list_family_rows()[name]["layout"]
    tensors = golden.tensors(MODELS[name] / "model.safetensors")
    embedding, head = f"{row['embedding']}.weight", f"{row['head']}.weight"
    ranks = []
    for tied in (True, False):
        (tmp_path / str(tied)).mkdir()
        model = change_config(name, tmp_path / str(tied), tie_word_embeddings=tied)
        (model / "model.safetensors").unlink()
        made = {key: entry for key, entry in tensors.items() if key != head}
        write_safetensors(model / "model.safetensors", made if tied else made | {head: tensors[embedding]})
        convert_model(model, tmp_path / f"{tied}-out", ConvertOptions())
        ranks.append((tmp_path / f"{tied}-out/rank0.safetensors").read_bytes())
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("GemmaForCausalLM", {"hidden_act": "silu", "hidden_activation": None}),
        ("MPTForCausalLM", {"expansion_ratio": 3}),
        ("BloomForCausalLM", {"slow_but_exact": True, "pretraining_tp": 2}),
        (
            "RecurrentGemmaForCausalLM",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        ),
        ("GemmaForCausalLM", {"use_bidirectional_attention": True}),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}),
        ("Gemma2ForCausalLM", {"layer_types": ["full_attention"] * 9}),
    ],
)
def test_values_that_a_checkpoint_would_lose(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError) as e:
        read_model_config(change_config(name, tmp_path, **keys))
    assert next(iter(keys)) in str(e.value) and e.value.fix
    assert "does not implement" not in str(e.value)  # transformers' class does


def test_sizes_that_an_error_proposes_work(tmp_path: Path) -> None:
    """Bloom takes no stages, and no ranks that do not divide the vocabulary: a fix knows both."""
    raw = json.loads((MODELS["BloomForCausalLM"] / "config.json").read_text())
    config = parse_config(raw | {"vocab_size": 67}, tmp_path)
    with pytest.raises(UsageError) as e:
        check_pipeline_support(config, CheckpointMapping(1, 2))
    assert e.value.fix == "leave --pipeline-parallel out, and use --tensor-parallel 1"
    with pytest.raises(UsageError) as e:
        check_parallelism(config, CheckpointMapping(3))
    assert e.value.fix == "--tensor-parallel one of 1"


def test_damage_is_found(tmp_path: Path) -> None:
    convert_model(
        MODELS["NemotronForCausalLM"], tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2))
    )
    path = tmp_path / "out/rank1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (finding,) = CheckpointComparison(tmp_path / "out", MODELS["NemotronForCausalLM"]).findings()
    assert finding.what == "differs from the model's"


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"BaichuanForCausalLM"}))
def test_inspect_locks_and_plans_know_the_sizes(name: str, tmp_path: Path) -> None:
    """One reading of a family's own keys: inspect and locks agree with conversion, a plan with its files."""
    config = read_model_config(MODELS[name])
    with open_model(str(MODELS[name])) as model:
        described = describe_model(model)
    text = (MODELS[name] / "config.json").read_bytes()
    facts = extract_model_metadata({"config.json": text}, "lock")
    pairs = (
        ("layers", "layers", config.num_layers),
        ("heads", "heads", config.num_heads),
        ("kv_heads", "kvHeads", config.num_kv_heads),
        ("head_size", "headSize", config.head_dim),
        ("hidden_size", "hiddenSize", config.hidden_size),
        ("intermediate_size", "intermediateSize", config.intermediate_size),
        ("vocabulary", "vocabulary", config.vocab_size),
        ("context", "context", config.context),
    )
    for attribute, fact, size in pairs:
        assert (getattr(described, attribute), facts[fact]) == (size, size), attribute
    planned = CheckpointSizes(config, open_weights(MODELS[name])).ranks(2, 1, None, None)
    convert_model(MODELS[name], tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2)))
    assert planned.files == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_absent_keys_are_one_for_every_reader(name: str, tmp_path: Path) -> None:
    golden = json.loads((MODELS[name] / "config.json").read_text())
    variant = list_family_rows()[name].get("variants", {}).get("names", [None])[0]
    read = 0
    for absent in golden:
        raw = {key: value for key, value in golden.items() if key != absent}
        try:
            model = parse_config(raw, tmp_path, variant=variant)
        except ModelError:
            continue
        read += 1
        facts = extract_model_metadata({"config.json": json.dumps(raw).encode()}, "lock")
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with open_model(str(tmp_path)) as inspected:
            described = describe_model(inspected)
        for fact, attribute, size in (
            ("layers", "layers", model.num_layers),
            ("kvHeads", "kv_heads", model.num_kv_heads),
            ("headSize", "head_size", model.head_dim),
            ("intermediateSize", "intermediate_size", model.intermediate_size),
            ("context", "context", model.context),
        ):
            assert (facts[fact], getattr(described, attribute)) == (size, size), (fact, absent)
        assert facts.get("tiedEmbeddings", False) is described.tied_embeddings is model.tie_word_embeddings
    assert read


def test_every_row_has_an_engine_class_and_golden_data() -> None:
    """The class map is of release 1.0 and later; a row without data of its own shares another's class."""
    engine = load_table("engine_classes")["engine"]
    rows = list_family_rows()
    assert {name: engine.get(row.get("writtenAs", name)) for name, row in rows.items()} == {
        name: row["engineClass"] for name, row in rows.items()
    }
    for row in rows.values():
        assert row["golden"] or any(
            o["golden"] and o["engineClass"] == row["engineClass"] for o in rows.values()
        )


SAVED = {
    "FalconForCausalLM": [
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
        {},
    ],
    "GPTBigCodeForCausalLM": [{"num_key_value_heads": 1}],
    "GPTNeoXForCausalLM": [{"intermediate_size": 128}],
    "Gemma2ForCausalLM": [{"head_dim": 8}],
    "GemmaForCausalLM": [{"head_dim": 8}],
    "MptForCausalLM": [{"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 32}],
    "OPTForCausalLM": [
        {"ffn_dim": 128, "word_embed_proj_dim": 32},
        {"do_layer_norm_before": False, "ffn_dim": 128, "word_embed_proj_dim": 16},
    ],
    "PhiForCausalLM": [{"num_key_value_heads": 4}],
    "RecurrentGemmaForCausalLM": [{"num_key_value_heads": 1, "head_dim": 8, "lru_width": 32}],
    "CohereForCausalLM": [{"use_qk_norm": True}, {"head_dim": 12}],
    "GPTJForCausalLM": [{"rotary_dim": 4}],
    "BloomForCausalLM": [{}],
    "GPT2LMHeadModel": [{}, {"tie_word_embeddings": False}],
    "Starcoder2ForCausalLM": [{}, {"use_bias": False, "tie_word_embeddings": False}],
    "NemotronForCausalLM": [{"head_dim": 8}],
    "GraniteForCausalLM": [{"embedding_multiplier": 12.0, "attention_bias": True}],
    "DeepseekV2ForCausalLM": [
        {
            "kv_lora_rank": 16,
            "q_lora_rank": rank,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        }
        for rank in (None, 24)
    ],
    "PhimoeForCausalLM": [{"attention_bias": True, "lm_head_bias": True, "num_local_experts": 4}],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), [(n, k) for n, ks in SAVED.items() for k in ks])
def test_models_of_the_installed_transformers_convert(
    name: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    """By transformers' names, not ours: every tensor has a place, and none is missing."""
    import torch
    import transformers

    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
        "intermediate_size": 64, "max_position_embeddings": 32, "num_key_value_heads": 2, "n_embd": 32,
        "n_layer": 3, "n_head": 4,
        "n_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    stem = {"GPT2LMHeadModel": "GPT2"}.get(name, name.removesuffix("ForCausalLM"))
    config = getattr(transformers, f"{stem}Config")(**(sizes | keys))
    torch.manual_seed(3)
    model = getattr(transformers, name)(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    convert_model(
        tmp_path / "model", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2), kind="tensorrt")
    )
    assert verify_checkpoint(tmp_path / "out").findings == []
    assert list(CheckpointComparison(tmp_path / "out", tmp_path / "model").findings()) == []
