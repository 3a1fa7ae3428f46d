"""config.json as transformers 4 and 5 write it, and in invalid forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.describe import describe_checkpoint_config
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.errors import EnginixError, ModelError
from enginix.evaluation.reference_answers.question_builder import read_sizes
from enginix.hub.model_metadata import extract_model_metadata, find_quantization_contradiction
from enginix.inspect import describe_model, open_model
from enginix.kinds.tensorrt.build.build_subject import make_build_subject
from enginix.kinds.tensorrt.build.effective_build import predict_build
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.model import ModelConfig
from enginix.model.attention_window import describe_windows
from enginix.model.config import parse_config, read_model_config
from enginix.model.context_length import read_checkpoint_context, read_model_context
from enginix.model.quantization import read_quantization
from enginix.reference.config import read_executor_config
from enginix.tables import load_table

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "dtype": "bfloat16",
}  # fmt: skip
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


ROWS = load_table("architectures")["architectures"]


def read(**changes: Any) -> ModelConfig:
    """Read BASE with changes, and the model_type of the class that they name."""
    name = str((changes.get("architectures") or ["LlamaForCausalLM"])[0])
    named = {"model_type": ROWS[name]["modelTypes"][0]} if name in ROWS else {}
    return parse_config(BASE | named | changes, Path("model"))


@pytest.mark.parametrize(
    ("changes", "base", "kind", "scaling"),
    [
        ({}, 10000.0, "default", None),
        ({"rope_theta": 5e5}, 5e5, "default", None),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, "default", None),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}}, 5e5, "default", None),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, 5e5, "default", None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, "default", None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 5e5, "linear", 2.0),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 5e5, "dynamic", 2.0),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 5e5, "llama3", 8.0),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}}, 5e5, "llama3", 8.0),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0}}, 5e5, "yarn", 4.0),
    ],
)
def test_rope_from_every_place(
    changes: dict[str, Any], base: float, kind: str, scaling: float | None
) -> None:
    rope = read(**changes).rope
    assert (rope.base, rope.type) == (base, kind)
    assert (rope.scaling or {}).get("factor") == scaling
    assert scaling is None or (rope.scaling or {})["rope_type"] == kind
    assert "rope_theta" not in (rope.scaling or {})


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_alpha_of_dynamic_scaling_is_refused(place: str) -> None:
    """Hunyuan's: in the architectures here transformers ignores it and TensorRT-LLM would not."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert read(**{place: scaling | {"alpha": 1.0}}).rope.type == "dynamic"
    with pytest.raises(ModelError, match="alpha 1000"):
        read(**{place: scaling | {"alpha": 1000.0}})


def test_mixtrals_own_default_base() -> None:
    mixtral = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}
    assert read(architectures=["MixtralForCausalLM"], **mixtral).rope.base == 1e6


@pytest.mark.parametrize("name", ["su", "longrope", "yarn"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_phi3_longrope(name: str, place: str) -> None:
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    config = read(
        architectures=["Phi3ForCausalLM"], model_type="phi3", partial_rotary_factor=0.75,
        original_max_position_embeddings=32, **{place: {"type": name, **factors}},
    )  # fmt: skip
    assert config.rope.type == "longrope" and config.rope.fraction == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(load_table("architectures")["architectures"]))
def test_what_transformers_itself_writes(name: str, tmp_path: Path) -> None:
    """A config that the installed transformers saves is read with the base and scaling it was given."""
    import transformers

    kind = getattr(transformers, name.replace("ForCausalLM", "Config"))
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 123456.0}
    if name == "Phi3ForCausalLM":
        rope = {
            "rope_type": "longrope",
            "rope_theta": 123456.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        }
    config = kind(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope, pad_token_id=0,
        original_max_position_embeddings=4096,
    )  # fmt: skip
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    read_back = read_model_config(tmp_path)
    assert read_back.rope.base == 123456.0 and read_back.rope.type == rope["rope_type"]
    assert read_back.num_kv_heads == 2 and read_back.head_dim == (getattr(config, "head_dim", None) or 16)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "LlamaForCausalLM"),
        ({"architectures": []}, "architectures"),
        ({"architectures": [["x"]]}, "unknown"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "KV heads"),
        ({"hidden_size": 66}, "head_dim"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"dtype": "int8"}, "dtype"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 10000.0 in the rope"),
        ({"rope_theta": -1, "rope_parameters": {"rope_theta": 1e4}}, "and -1 beside them"),
        ({"partial_rotary_factor": 10**400}, "partial_rotary_factor is 1000"),
        ({"model_type": "\ud800"}, r"model_type is '\ud800'"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "spiral"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"full_attention": {}, "sliding_attention": {}}}, "kind of layer"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "no bias in attention.dense"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [0]}, "every layer"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 2}, "every layer"),
        ({"architectures": ["MixtralForCausalLM"]}, "KV heads (num_key_value_heads is absent"),
        (
            {"architectures": ["MixtralForCausalLM"], "num_key_value_heads": 2, "num_local_experts": None},
            "num_local_experts is null",
        ),
        ({"model_type": "gemma"}, "LlamaForCausalLM and model_type is 'gemma'"),
        ({"model_type": "mistral", "sliding_window": 8}, "as MistralForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen3"}, "as Qwen3ForCausalLM"),
        ({"is_causal": False}, "is_causal is False"),
        ({"architectures": ["Qwen2ForCausalLM"], "is_causal": False}, "is_causal is False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"num_kv_shared_layers": 1}, "num_kv_shared_layers"),
        ({"sliding_window": 8}, "sliding_window is 8"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"lm_head_multiplier": 0.5}, "lm_head_multiplier"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is 'other.safetensors'"),
        ({"transformers_weights": "model.safetensors"}, "transformers_weights"),  # the shards are there
        ({"architecture": "LlamaForCausalLM", "architectures": None}, "architectures is None"),
        ({"pretrained_config": {}, "build_config": {}}, "an engine of TensorRT-LLM"),
        (
            {
                "architectures": ["MixtralForCausalLM"],
                "num_key_value_heads": 2,
                "num_local_experts": 2,
                "num_experts_per_tok": 3,
            },
            "exceeds",
        ),
    ],
)
def test_refusals_name_the_key_and_the_fix(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as e:
        read(**changes)
    assert says in str(e.value) and e.value.fix


@pytest.mark.parametrize(
    "changes",
    [
        {"is_causal": True},
        {"is_causal": None, "use_bidirectional_attention": False, "num_kv_shared_layers": 0},
        {"sliding_window": 64},
        {"sliding_window": 8, "use_sliding_window": False},
        {"scale_attn_weights": True, "lm_head_multiplier": 1.0, "scale_embedding": False},
        {"transformers_weights": "model.safetensors.index.json"},
        {"transformers_weights": None},
    ],
)
def test_the_values_that_change_nothing_are_read(changes: dict[str, Any]) -> None:
    assert read(**changes).architecture == "LlamaForCausalLM"


def test_absent_sizes_are_the_classs() -> None:
    moe = {"architectures": ["Qwen3MoeForCausalLM"], "num_attention_heads": 4, "head_dim": 16}
    config = parse_config(moe | {"model_type": "qwen3_moe"}, Path("model"))
    assert config.experts is not None
    assert (config.experts.count, config.experts.top_k, config.experts.width) == (128, 8, 768)
    assert (config.hidden_size, config.vocab_size, config.num_layers) == (2048, 151936, 24)


SIZES = {
    "vocab_size": 100, "hidden_size": 4096, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 64, "num_key_value_heads": 16, "head_dim": 24, "max_position_embeddings": 64,
    "num_local_experts": 160, "num_experts": 160, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ROWS))
def test_absent_sizes_are_one_for_every_reader(name: str, tmp_path: Path) -> None:
    own = {key: size for key, size in SIZES.items() if key in ROWS[name]["defaults"]}
    named = {"architectures": [name], "model_type": ROWS[name]["modelTypes"][0]}
    without = [{k: v for k, v in own.items() if k != absent} for absent in own]
    nulls = [own | {key: None} for key in ("num_key_value_heads", "head_dim")]
    for sizes in ({}, own, *without, *nulls):
        raw = named | sizes
        (tmp_path / "config.json").write_text(json.dumps(raw))
        model, facts = parse_config(raw, tmp_path), extract_model_metadata(
            {"config.json": json.dumps(raw).encode()}, "lock"
        )  # fmt: skip
        with open_model(str(tmp_path)) as inspected:
            described = describe_model(inspected)
        experts = model.experts
        for fact, attribute, size in (
            ("layers", "layers", model.num_layers),
            ("heads", "heads", model.num_heads),
            ("kvHeads", "kv_heads", model.num_kv_heads),
            ("headSize", "head_size", model.head_dim),
            ("hiddenSize", "hidden_size", model.hidden_size),
            ("intermediateSize", "intermediate_size", model.intermediate_size),
            ("vocabulary", "vocabulary", model.vocab_size),
            ("context", "context", model.context),
            ("experts", "experts", experts and experts.count),
            ("expertsPerToken", "experts_per_token", experts and experts.top_k),
        ):
            assert (facts.get(fact), getattr(described, attribute)) == (size, size), (fact, raw)
        assert read_sizes(tmp_path) == (model.vocab_size, min([model.context, *filter(None, model.windows)]))
        assert facts["attentionWindow"] == describe_windows(model).get("attentionWindow", [])
        assert BuildCheckpoint.of_model(tmp_path).positions == model.max_position_embeddings


@pytest.mark.parametrize(
    ("entry", "says", "instead"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "block-scaled FP8", "FP8 or NVFP4"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ", "W4A16_AWQ"),
        ({"quant_method": "awq", "bits": 4}, "AutoAWQ", "W4A16_AWQ"),
        ({"quant_method": "mxfp4"}, "mxfp4", "llmapi"),
        ({"quant_method": "never-heard-of"}, "never-heard-of", "ModelOpt"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, "NVFP4_AWQ", "NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"}, "FP8_BLOCK_SCALES", "FP8"),
        ({"quant_method": "modelopt", "quant_algo": "W1A1"}, "W1A1", "NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "INT8"}, "INT8", "FP8"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantized_layers", "export"),
    ],
)
def test_quantization_that_cannot_be_converted(entry: dict[str, Any], says: str, instead: str) -> None:
    with pytest.raises(ModelError) as e:
        read(quantization_config=entry)
    assert says in e.value.what and instead in (e.value.fix or "")


def test_modelopts_inline_form_equals_its_sidecar(tmp_path: Path) -> None:
    """A model whose quantization is described in config.json alone, in compressed-tensors' words."""
    inline = {
        "quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "model.layers.1.self_attn*"],
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    }  # fmt: skip
    sidecar = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": inline["ignore"]}
    first = read(quantization_config=inline).quantization
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": sidecar}))
    second = read_model_config(tmp_path).quantization
    assert first == second and first is not None
    assert first.excludes("model.layers.1.self_attn.q_proj") and not first.excludes(
        "model.layers.0.mlp.up_proj"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    *BASE,
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "num_key_value_heads",
    "quantization_config",
]
KEYS += [
    "tie_word_embeddings",
    "sliding_window",
    "num_local_experts",
    "num_experts_per_tok",
    "mlp_only_layers",
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(load_table("architectures")["architectures"])),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5),
)
def test_any_config_is_read_or_refused(name: str, changes: dict[str, Any]) -> None:
    try:
        config = parse_config(
            BASE | {"architectures": [name], "model_type": ROWS[name]["modelTypes"][0]} | changes,
            Path("model"),
        )
    except EnginixError as e:
        assert e.fix
        return
    assert config.head_dim > 0 and config.rope.base > 0


@pytest.mark.parametrize(
    ("entry", "algorithm", "kv_cache"),
    [
        # Qwen/Qwen3-32B-FP8-Static-PerTensor: ModelOpt 0.31 names no quant_method, and the scheme is a word.
        ({"quant_algo": "FP8", "kv_cache_scheme": "FP8", "producer": {"name": "modelopt"}}, "FP8", "FP8"),
        ({"quant_algo": "FP8", "producer": {"name": "modelopt"}, "ignore": ["lm_head"]}, "FP8", None),
        ({"quant_algo": "FP8", "quant_method": "modelopt", "kv_cache_scheme": "fp8"}, "FP8", "FP8"),
    ],
)
def test_inline_quantization_of_older_modelopt(
    entry: dict[str, Any], algorithm: str, kv_cache: str | None, tmp_path: Path
) -> None:
    found = read_quantization(tmp_path, {"quantization_config": entry})
    assert found is not None and (found.algorithm, found.kv_cache) == (algorithm, kv_cache)
    facts = extract_model_metadata({"config.json": json.dumps({"quantization_config": entry}).encode()}, "x")
    assert (facts["quantization"], facts["kvCacheQuantization"]) == (algorithm, kv_cache)


@pytest.mark.parametrize(
    "entry",
    [
        {"quant_algo": "FP8"},
        {"quant_algo": "FP8", "producer": {"name": "autofp8"}},
        {"producer": {"name": "modelopt"}},
        {"quant_algo": "FP8", "quant_method": "fp8", "producer": {"name": "modelopt"}},
    ],
)
def test_an_unknown_quantization_method_is_refused(entry: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantization method"):
        read_quantization(tmp_path, {"quantization_config": entry})
    facts = extract_model_metadata({"config.json": json.dumps({"quantization_config": entry}).encode()}, "x")
    if entry.get("quant_algo"):
        assert facts["quantizationMethod"] not in (None, "modelopt")


@pytest.mark.parametrize(
    ("sidecar", "inline", "said"),
    [
        ({"quant_algo": "FP8"}, {"quant_algo": "NVFP4"}, "quant_algo is FP8, and NVFP4 in config.json"),
        ({"quant_algo": None}, {"quant_algo": "FP8"}, "quant_algo is None, and FP8"),
        ({"quant_algo": "fp8"}, {"quant_algo": "FP8", "quant_method": "modelopt"}, None),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "fp8"}, {"kv_cache_quant_algo": "FP8"}, None),
        ({"quant_algo": "FP8"}, {"kv_cache_scheme": "FP8"}, "KV cache is not quantized, and FP8"),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, {}, None),
    ],
)
def test_two_descriptions_that_contradict_each_other(
    sidecar: dict[str, Any], inline: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    """A lock tells it before the weights are fetched; conversion refuses it."""
    config = {"quantization_config": inline}
    files = {"config.json": config, "hf_quant_config.json": {"quantization": sidecar}}
    texts = {name: json.dumps(value).encode() for name, value in files.items()}
    (tmp_path / "hf_quant_config.json").write_bytes(texts["hf_quant_config.json"])
    noted = find_quantization_contradiction(texts, "x")
    if said is None:
        assert noted is None and read_quantization(tmp_path, config) is not None
        return
    assert noted is not None and said in noted
    with pytest.raises(ModelError, match=said):
        read_quantization(tmp_path, config)


@pytest.mark.parametrize("config", [{"quantization_config": [8]}, {"quantization_config": {"quant_algo": 8}}])
def test_what_names_no_format_is_no_unquantized_model(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_quantization(tmp_path, config)
    facts = extract_model_metadata({"config.json": json.dumps(config).encode()}, "x")
    assert facts["quantization"] == "UNKNOWN"


def test_a_method_is_known_in_any_case(tmp_path: Path) -> None:
    entry = {"quant_method": "ModelOpt", "quant_algo": "Fp8", "ignore": ["lm_head"]}
    found = read_quantization(tmp_path, {"quantization_config": entry})
    assert found is not None and found.algorithm == "FP8"


YARN = {"rope_type": "yarn", "factor": 4.0}
# Rope scaling and max_position_embeddings → context, and what the PyTorch backend clips it to. By hand from
# TensorRT-LLM's builder.py and infer_max_seq_len, and from what the models' cards say of the public forms.
CONTEXTS = [
    ({}, 4096, 4096, 4096),
    ({"type": "linear", "factor": 4.0}, 4096, 16384, 16384),  # vicuna-13b-v1.5-16k
    ({"type": "linear", "factor": 2.5}, 4097, 10243, 10243),
    ({"type": "dynamic", "factor": 2.0}, 4096, 8192, 8192),
    ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072, 32768),
    (YARN, 32768, 131072, 32768),
    ({**YARN, "original_max_position_embeddings": 32768}, 131072, 131072, 131072),  # R1-0528-Qwen3-8B
    ({**YARN, "original_max_position_embeddings": 32768}, 40960, 131072, 40960),  # Qwen3's recipe
    ({**YARN, "original_max_position_embeddings": 4096}, 65536, 65536, 65536),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}, 131072, 131072, 131072),
]  # fmt: skip


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("scaling", "positions", "context", "clipped"), CONTEXTS)
def test_rope_scaling_extends_the_context_for_every_reader(
    scaling: dict[str, Any], positions: int, context: int, clipped: int, key: str, tmp_path: Path
) -> None:
    raw = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 128,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "silu",
        "max_position_embeddings": positions, **({key: scaling} if scaling else {}),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    facts = extract_model_metadata({"config.json": json.dumps(raw).encode()}, "lock")
    assert (facts["context"], facts.get("pytorchContext", facts["context"])) == (context, clipped)
    with open_model(str(tmp_path), None) as inspected:
        assert describe_model(inspected).context == context
    assert BuildCheckpoint.of_model(tmp_path).context == context
    model = read_model_config(tmp_path)
    checkpoint = describe_checkpoint_config(model, "float16", CheckpointMapping(1, 1), {})
    assert model.context == read_checkpoint_context(checkpoint) == context
    (tmp_path / "config.json").write_text(json.dumps(checkpoint))
    assert read_executor_config(tmp_path).context == CheckpointConfig.read(tmp_path).context == context
    subject = make_build_subject(checkpoint, 90)
    extended = scaling.get("rope_type") == "yarn" and positions > 32768  # trtllm-build multiplies these, too
    assert predict_build(subject, []).build_config["max_seq_len"] == (positions * 4 if extended else context)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 8.0}},
        {"rope_scaling": {"type": "longrope", "factor": 32.0}},
        {"rope_scaling": {"type": "su", "factor": 32.0}},
        {"rope_scaling": {"type": "linear", "factor": float("nan")}},
        {"rope_scaling": {"type": ["linear"], "factor": 2.0}},
        {"rope_scaling": "linear"},
    ],
)
def test_other_rope_scaling_leaves_the_context(config: dict[str, Any]) -> None:
    assert read_model_context({"max_position_embeddings": 131072, **config}) == 131072
