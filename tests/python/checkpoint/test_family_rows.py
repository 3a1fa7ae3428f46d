"""Rows of family_rows.json: the kinds of arrangement, expressions, and what a row refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_golden import list_family_conversions
from hypothesis import given, settings
from hypothesis import strategies as st

import golden
from enginix.checkpoint import byte_sources, compiled_casts
from enginix.checkpoint.byte_sources import SourceFileReader, TransposedRows
from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.family_layout import QKV_KINDS, join_neighbours, select_heads, swap_halves
from enginix.checkpoint.mapping import CheckpointMapping, check_parallelism, check_pipeline_support
from enginix.checkpoint.verify import verify_checkpoint
from enginix.errors import EnginixError, ModelError, UsageError
from enginix.hub.model_metadata import extract_model_metadata
from enginix.inspect import describe_model, open_model
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import plan_memory
from enginix.kinds.reference.reference_build import build_reference_engine
from enginix.memory_plan.arithmetic import find_target_gpu
from enginix.memory_plan.weights import CheckpointSizes
from enginix.model import TensorInfo, open_weights
from enginix.model.config import parse_config, read_model_config
from enginix.model.family_rows import evaluate_expression, list_family_rows
from enginix.report.kinds import compare_kinds, read_compared_model
from enginix.tables import load_table

# A model of each family, out of the golden data.
MODELS: dict[str, Path] = {}
for _case in list_family_conversions():
    _name = json.loads((_case.model / "config.json").read_text())["architectures"][0]
    if _name in list_family_rows() and _case.label == "tp2-float16" and _case.defect is None:
        MODELS.setdefault(_name, _case.model)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from((1, 2, 4)), st.sampled_from(sorted(QKV_KINDS)))
@settings(deadline=None)
def test_every_arrangement_of_q_k_v_gives_each_rank_its_heads(
    groups: int, queries: int, tp: int, kind: str
) -> None:
    """Heads are numbers: a source of each kind, built by its definition, gives a rank's heads in order."""
    heads, kv = groups * queries * tp, groups * tp
    q, k, v = np.arange(heads), 1000 + np.arange(kv), 2000 + np.arange(kv)
    sources = {
        "split": [q, k, v],
        "blocks": [np.concatenate([q, k, v])],
        "groups": [
            np.concatenate([np.r_[q[g * queries : (g + 1) * queries], k[g], v[g]] for g in range(kv)])
        ],
    }[kind]
    for ranks in (tp, heads):  # also more ranks than KV heads
        for rank in range(ranks):
            own, shared = select_heads(heads, kv, ranks, rank)
            slices = join_neighbours(QKV_KINDS[kind]((heads, kv, kv), (own, shared, shared)))
            taken = np.concatenate([sources[number][begin:end] for number, (begin, end) in slices])
            first = rank * (heads // ranks) // queries
            owners = range(first, first + max(1, kv // ranks))
            expected = [*range(*own), *(1000 + h for h in owners), *(2000 + h for h in owners)]
            assert taken.tolist() == expected


@given(st.integers(1, 20), st.data())
def test_swapped_halves(width: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, width - 1))
    end = data.draw(st.integers(begin + 1, width))
    first_half, second_half = np.arange(width), 100 + np.arange(width)
    matrix = np.concatenate([first_half, second_half])
    taken = np.concatenate([matrix[slice(*rows)] for rows in swap_halves(width, (begin, end))])
    assert taken.tolist() == [*second_half[begin:end], *first_half[begin:end]]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["F16", "F32"])
@pytest.mark.parametrize("band", [1 << 20, 64])
def test_transposed_rows(
    compiled: bool, dtype: str, band: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_sources, "TRANSPOSED", band)
    monkeypatch.setattr(byte_sources, "CHUNK", 128)
    if not compiled:
        monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: None)
    kind = {"F16": "<u2", "F32": "<u4"}[dtype]
    matrix = np.random.default_rng(5).integers(0, 0x7C00, (37, 70)).astype(kind)
    (tmp_path / "weights").write_bytes(b"head" + matrix.tobytes())
    info = TensorInfo("w", dtype, matrix.shape, tmp_path / "weights", 4, 4 + matrix.nbytes)
    for rows, cols in (((0, 70), (0, 37)), ((3, 68), (5, 29)), ((69, 70), (36, 37))):
        part = TransposedRows(info, 37, 70, rows, cols)
        with SourceFileReader() as reader:
            made = b"".join(bytes(block) for block in part.blocks(reader))
        assert len(made) == part.size and made == matrix.T[slice(*rows), slice(*cols)].tobytes()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_transposed_matrix_that_ends_early(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_sources, "TRANSPOSED", 64)
    if not compiled:
        monkeypatch.setattr(compiled_casts, "find_compiled_casts", lambda: None)
    (tmp_path / "weights").write_bytes(bytes(37 * 70 * 2 - 1))
    info = TensorInfo("w", "F16", (37, 70), tmp_path / "weights", 0, 37 * 70 * 2)
    with SourceFileReader() as reader, pytest.raises(ModelError, match="ends at byte 5179"):
        list(TransposedRows(info, 37, 70, (0, 70), (0, 37)).blocks(reader))


@pytest.mark.parametrize("at", [0, 37 * 70 - 1])
def test_a_transposed_matrix_with_nan(at: int, tmp_path: Path) -> None:
    matrix = np.zeros(37 * 70, "<f2")
    matrix[at] = np.nan
    (tmp_path / "weights").write_bytes(matrix.tobytes())
    info = TensorInfo("w", "F16", (37, 70), tmp_path / "weights", 0, matrix.nbytes)
    with SourceFileReader() as reader, pytest.raises(ModelError, match="'w' holds NaN"):
        list(TransposedRows(info, 37, 70, (0, 70), (0, 37)).blocks(reader))


def test_expressions() -> None:
    values = {"hf.a": 4, "hf.b": None, "n": 6}
    rule = {"case": [[{"hf.b": None, "hf.a": 4}, {"multiply": ["$n", "$hf.a"]}], [{}, 1]]}
    assert evaluate_expression(rule, values, "") == 24
    assert evaluate_expression({"divide": ["$n", {"sqrt": "$hf.a"}]}, values, "") == 3
    # True is not 1, and 1 is not 1.0.
    assert evaluate_expression({"case": [[{"hf.a": 4.0}, "yes"], [{}, "no"]]}, values, "") == "no"
    with pytest.raises(ModelError, match="b is None, not a positive number"):
        evaluate_expression({"multiply": ["$n", "$hf.b"]}, values, "x")


def change_config(name: str, tmp_path: Path, **keys: Any) -> Path:
    """Return a copy of a family's golden model, its weights linked, with other keys."""
    model = tmp_path / "model"
    model.mkdir(parents=True)
    for path in MODELS[name].iterdir():
        if path.name != "config.json":
            (model / path.name).symlink_to(path)
    raw = json.loads((MODELS[name] / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | keys))
    return model


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
            obstacles = plan_memory(opened, find_target_gpu("h200"), PlanRequest(kind)).obstacles
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


@pytest.mark.parametrize(
    ("name", "ignored", "taken"),
    [
        ("DeepseekV2ForCausalLM", {"norm_topk_prob": True}, {"norm_topk_prob": False}),
        ("MPTForCausalLM", {"attn_config": {"alibi_bias_max": 16}}, {"attn_config": {"alibi_bias_max": 8}}),
    ],
)
def test_a_value_that_transformers_ignores_is_noted(
    name: str, ignored: dict[str, Any], taken: dict[str, Any], tmp_path: Path
) -> None:
    (key,) = ignored
    raw = json.loads((MODELS[name] / "config.json").read_text())
    for number, (keys, count) in enumerate(((ignored, 1), (taken, 0))):
        value = raw[key] | keys[key] if isinstance(keys[key], dict) else keys[key]
        notes = read_model_config(change_config(name, tmp_path / str(number), **{key: value})).notes
        assert len([note for note in notes if "transformers' class" in note]) == count


def test_names_without_their_prefix_and_with_masks(tmp_path: Path) -> None:
    """The Hub's first GPT-2 files lack 'transformer.' and hold the mask; the checkpoint is the same."""
    source = (MODELS["GPT2LMHeadModel"] / "model.safetensors").read_bytes()
    length = int.from_bytes(source[:8], "little")
    header = json.loads(source[8 : 8 + length])
    data = source[8 + length :]
    renamed = {name.removeprefix("transformer."): entry for name, entry in header.items()}
    renamed["h.0.attn.bias"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    model = change_config("GPT2LMHeadModel", tmp_path)
    (model / "model.safetensors").unlink()
    text = json.dumps(renamed).encode()
    text += b" " * (-len(text) % 8)
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data + bytes(4))
    convert_model(model, tmp_path / "short", ConvertOptions())
    convert_model(MODELS["GPT2LMHeadModel"], tmp_path / "long", ConvertOptions())
    ranks = [(tmp_path / name / "rank0.safetensors").read_bytes() for name in ("short", "long")]
    assert ranks[0] == ranks[1]


ALIASES = [(name, alias) for name in sorted(MODELS) for alias in list_family_rows()[name].get("aliases", {})]


@pytest.mark.parametrize(("name", "alias"), ALIASES)
def test_another_name_of_a_key_is_the_key(name: str, alias: str, tmp_path: Path) -> None:
    """As published: Bloom's config.json has n_embed and num_attention_heads. Lock facts agree."""
    own = list_family_rows()[name]["aliases"][alias]
    original = json.loads((MODELS[name] / "config.json").read_text())
    raw = {key: value for key, value in original.items() if key not in (own, alias)}
    read, expected = (
        parse_config(r, tmp_path) for r in (raw | {alias: original[own]}, {**raw, own: original[own]})
    )
    assert not [note for note in read.notes if alias in note]
    assert replace(read, raw={}, notes=()) == replace(expected, raw={}, notes=())
    facts = [
        extract_model_metadata({"config.json": json.dumps(r).encode()}, "lock")
        for r in (raw | {alias: original[own]}, raw | {own: original[own]})
    ]
    assert facts[0] == facts[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, _ in ALIASES}))
def test_aliases_are_those_of_the_installed_transformers(name: str) -> None:
    """An alias counts before the class's own name, and every name of a size in attribute_map is one."""
    import transformers

    stem = {"GPT2LMHeadModel": "GPT2", "MPTForCausalLM": "Mpt"}.get(name, name.removesuffix("ForCausalLM"))
    kind = getattr(transformers, f"{stem}Config")
    aliases = list_family_rows()[name]["aliases"]
    for alias, own in aliases.items():
        assert getattr(kind(**{alias: 48}), own) == getattr(kind(**{own: 24, alias: 48}), own) == 48
    assert set(kind.attribute_map) <= set(aliases)


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


def test_gpt_neox_has_its_own_names_of_the_rotation(tmp_path: Path) -> None:
    """Transformers reads rotary_emb_base and rotary_pct; others' names change nothing."""
    keys = {"rotary_pct": 0.5, "rotary_emb_base": 700, "rope_theta": 500, "partial_rotary_factor": 0.75}
    rope = read_model_config(change_config("GPTNeoXForCausalLM", tmp_path, **keys)).rope
    assert (rope.base, rope.fraction) == (700.0, 0.5)


# Old configurations of Falcon's golden models: model_type, and the keys that mean what later ones say.
OLD_FALCON = {
    "falcon7b": ("RefinedWebModel", ("multi_query", "parallel_attn", "bias", "alibi")),
    "falcon-rw1b": ("RefinedWebModel", ("multi_query", "parallel_attn", "bias", "alibi")),
    "falcon40b": ("RefinedWeb", ("parallel_attn", "bias", "alibi")),
}


@pytest.mark.parametrize("name", OLD_FALCON)
def test_the_old_name_of_falcon(name: str, tmp_path: Path) -> None:
    """Its configuration has other keys; the checkpoint is that of FalconForCausalLM, held by golden data."""
    source = next(c.model for c in list_family_conversions() if c.case == name)
    kind, keys = OLD_FALCON[name]
    raw = json.loads((source / "config.json").read_text())
    old = {key: raw[key] for key in (*keys, "vocab_size", "hidden_size", "layer_norm_epsilon", "torch_dtype")}
    old |= {"architectures": ["RWForCausalLM"], "model_type": kind, "n_layer": raw["num_hidden_layers"]}
    old |= {"n_head": raw["num_attention_heads"]}
    old |= {"n_head_kv": raw["num_kv_heads"]} if kind == "RefinedWeb" else {}
    # Every model of the old configuration has the later one's default.
    compare_conversions(source, old, {"max_position_embeddings": 2048}, tmp_path)


def test_phi_moe_by_the_name_of_transformers(tmp_path: Path) -> None:
    """TensorRT-LLM knows the name of the Hub's own code alone; the checkpoint has that."""
    source = MODELS["PhiMoEForCausalLM"]
    model = change_config("PhiMoEForCausalLM", tmp_path, architectures=["PhimoeForCausalLM"])
    for directory, out in ((source, "theirs"), (model, "ours")):
        convert_model(directory, tmp_path / out, ConvertOptions(kind="tensorrt"))
    for name in ("config.json", "rank0.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert list(CheckpointComparison(tmp_path / "ours", model).findings()) == []


def test_internlm_is_llama_with_biases(tmp_path: Path) -> None:
    """Its checkpoint is that of a Llama model with attention_bias, which golden data hold."""
    source = next(c.model for c in golden.conversions() if c.case == "llama-bias")
    raw = json.loads((source / "config.json").read_text())
    tensors = golden.tensors(source / "model.safetensors")
    made = {}
    for name, (dtype, shape, data) in tensors.items():
        if "k_proj" in name or "v_proj" in name:  # each KV head twice: InternLM has as many as heads
            half = len(data) // 2
            made[name] = (dtype, (2 * shape[0], *shape[1:]), data[:half] * 2 + data[half:] * 2)
        elif ".mlp." not in name or not name.endswith(".bias"):
            made[name] = (dtype, shape, data)
    (tmp_path / "source").mkdir()
    write_safetensors(tmp_path / "source/model.safetensors", made)
    llama = raw | {"num_key_value_heads": 4, "head_dim": None, "mlp_bias": False}
    (tmp_path / "source/config.json").write_text(json.dumps(llama))
    dropped = ("attention_bias", "mlp_bias", "num_key_value_heads", "head_dim")
    internlm = {key: value for key, value in raw.items() if key not in dropped}
    internlm |= {"architectures": ["InternLMForCausalLM"], "model_type": "internlm", "bias": True}
    compare_conversions(tmp_path / "source", internlm, {}, tmp_path)


def compare_conversions(source: Path, config: dict[str, Any], keys: dict[str, Any], work: Path) -> None:
    """Convert a model under another config.json; only the architecture's name and ``keys`` may differ."""
    renamed = work / "renamed"
    renamed.mkdir()
    (renamed / "config.json").write_text(json.dumps(config))
    (renamed / "model.safetensors").symlink_to(source / "model.safetensors")
    for model, out in ((source, work / "one"), (renamed, work / "other")):
        convert_model(model, out, ConvertOptions(mapping=CheckpointMapping(2), kind="tensorrt"))
    for rank in range(2):
        ranks = [(work / d / f"rank{rank}.safetensors").read_bytes() for d in ("one", "other")]
        assert ranks[0] == ranks[1]
    configs = [json.loads((work / d / "config.json").read_text()) for d in ("one", "other")]
    assert configs[1].pop("architecture") != configs[0].pop("architecture")
    assert configs[0] | keys == configs[1]


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


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
    engine = load_table("engine_support")["architectures"]["engine"]
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
