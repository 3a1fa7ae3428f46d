"""Configurations as transformers' own classes take them: computed as transformers does, or refused by name.

Each example is a ``config.json`` in the words of transformers 4 or 5 and a random model that transformers
itself makes of it. transformers is the judge: of what the configuration means, and of the logits.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import event, given, settings
from hypothesis import strategies as st

from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.verify import verify_checkpoint
from enginix.errors import EnginixError, UsageError
from enginix.model.config import read_model_config
from enginix.reference.executor import Executor
from enginix.tables import load_table

ROWS: dict[str, Any] = load_table("architectures")["architectures"]
HEADS, HEAD, POSITIONS = 4, 12, 64
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": HEADS * HEAD, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}  # fmt: skip
MOE = {
    "num_experts_per_tok": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}


def config_class(name: str) -> Any:
    return getattr(transformers, name.replace("ForCausalLM", "Config"))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_defaults_are_those_of_the_configuration_class(name: str) -> None:
    kind, row = config_class(name), ROWS[name]
    fields = {k: p.default for k, p in inspect.signature(kind).parameters.items()}
    defaults = dict(row["defaults"])
    assert defaults.pop("rope_theta") == kind.default_theta
    # Llama, Phi-3: null is as many as heads. A class without the field divides, as all do for null.
    assert defaults.pop("num_key_value_heads") == fields["num_key_value_heads"]
    assert defaults.pop("head_dim") == fields.get("head_dim")
    for key, value in defaults.items():
        assert fields[key] == value, key
    for key in ("sliding_window", "use_sliding_window", "max_window_layers"):
        assert key in row["defaults"] or key not in fields or row["window"] == "none", key


@pytest.mark.parametrize("name", sorted(ROWS))
def test_model_types_are_those_of_the_causal_language_models(name: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    listed, own = ROWS[name]["modelTypes"], transformers.CONFIG_MAPPING
    loading = {kind for kind, loaded in NAMES.items() if loaded == name}
    # A type with a configuration class of its own is not read as this one: exaone in 5.24.
    same = {kind for kind in loading if own[kind] is own[listed[0]]}
    assert same and same <= set(listed)
    assert {NAMES.get(kind, name) for kind in listed} == {name}
    sizes = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    assert sizes | {"max_position_embeddings"} <= ROWS[name]["defaults"].keys()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_key_of_the_configuration_class_has_a_reader(name: str, tmp_path: Path) -> None:
    """A key of the class is read, harmless, or refused where it changes the function: none is unknown."""

    kind = config_class(name)
    raw = {**kind().to_dict(), **SIZES, **MOE, "architectures": [name], "head_dim": HEAD}
    raw.pop("layer_types", None)
    raw = {k: v for k, v in raw.items() if k in inspect.signature(kind).parameters or k == "architectures"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_model_config(tmp_path).notes == ()


NUMBER = st.sampled_from([0.25, 0.7, 1.0, 1.5, 4.0])
ORIGINAL = st.sampled_from([16, 32, 64])
FACTORS = st.lists(st.sampled_from([1.0, 1.1, 2.0, 3.5]), min_size=HEAD // 2, max_size=HEAD // 2)
SCALINGS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "default": {"factor": NUMBER},
    "linear": {"factor": NUMBER, "original_max_position_embeddings": ORIGINAL},
    "dynamic": {"factor": st.sampled_from([1.0, 2.0, 4.0]), "alpha": st.sampled_from([1.0, 1000.0])},
    "llama3": {
        "factor": st.sampled_from([2.0, 8.0]),
        "low_freq_factor": st.sampled_from([0.5, 1.0]),
        "high_freq_factor": st.sampled_from([2.0, 4.0]),
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {
        "factor": st.sampled_from([0.5, 1.0, 2.0, 4.0]),
        "original_max_position_embeddings": ORIGINAL,
        "attention_factor": NUMBER | st.none(),
        "mscale": st.sampled_from([0, 0.7, 1.0]) | st.none(),
        "mscale_all_dim": st.sampled_from([0, 0.3, 1.0]) | st.none(),
        "beta_fast": st.sampled_from([8, 32.0]) | st.none(),
        "beta_slow": st.sampled_from([1, 2.0]) | st.none(),
        "truncate": st.booleans(),
        "attn_factor": NUMBER,
        "finetuned": st.booleans(),
    },
    "longrope": {
        "short_factor": FACTORS,
        "long_factor": FACTORS,
        "factor": st.sampled_from([1.0, 2.0, 4.0]),
        "attention_factor": NUMBER,
        "original_max_position_embeddings": ORIGINAL,
    },
}
# A scaling without these is no scaling to transformers, either; now and then one lacks.
NEEDED = {"factor", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor"}


@st.composite
def rope(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """The keys of ``config.json`` about positions, in either version's words."""
    usual = ["default", "longrope", "longrope"] if name.startswith("Phi3") else [*SCALINGS, "yarn", "yarn"]
    kind = draw(st.sampled_from(usual) | st.sampled_from(sorted(SCALINGS)))
    scaling: dict[str, Any] = {draw(st.sampled_from(["type", "rope_type"])): kind}
    for key, values in SCALINGS[kind].items():
        if draw(st.integers(0, 19)) if key in NEEDED and kind != "longrope" else draw(st.booleans()):
            scaling[key] = draw(values)
    if kind == "longrope":
        scaling |= {key: draw(FACTORS) for key in ("short_factor", "long_factor")}
    keys: dict[str, Any] = {}
    if draw(st.booleans()):
        keys["rope_theta"] = draw(st.sampled_from([100.0, 10000.0, 500000]))
    place = draw(
        st.sampled_from(["rope_scaling", "rope_parameters", None if kind == "default" else "rope_scaling"])
    )
    if place is not None:
        keys[place] = scaling
        if draw(st.booleans()):
            scaling["rope_theta"] = 54321.0
    if draw(st.integers(0, 3)) == 0:
        keys["partial_rotary_factor"] = draw(st.sampled_from([0.5, 1.0]))
    if draw(st.integers(0, 3)) == 0 or (name.startswith("Phi3") and draw(st.booleans())):
        keys["original_max_position_embeddings"] = draw(ORIGINAL)
    return keys


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(ROWS)))
    raw = {**SIZES, **(MOE if "experts" in ROWS[name]["mlp"] else {}), "architectures": [name]}
    raw["model_type"] = config_class(name).model_type
    raw |= draw(rope(name))
    optional: dict[str, st.SearchStrategy[Any]] = {
        "rms_norm_eps": st.sampled_from([1e-6, 1e-5, 1e-2]),
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "head_dim": st.sampled_from([HEAD, 16]) | st.none(),
        "hidden_act": st.just("silu"),
        "sliding_window": st.sampled_from([8, 20, 4096]) | st.none(),
        "use_sliding_window": st.booleans(),
        "max_window_layers": st.sampled_from([0, 1, 28]),
        "norm_topk_prob": st.booleans(),
        "attention_multiplier": NUMBER,
        "attn_logit_softcapping": st.sampled_from([30.0]) | st.none(),
    }
    fields = inspect.signature(config_class(name)).parameters
    for key, values in optional.items():
        likely = key in fields or key == "head_dim"
        if draw(st.booleans()) if likely else draw(st.integers(0, 29)) == 0:
            raw[key] = draw(values)
    if draw(st.integers(0, 9)) == 0:
        raw.pop("num_key_value_heads")
    return raw


def make_model(raw: dict[str, Any], directory: Path) -> Any:
    """Let transformers make a random model of a ``config.json``; None where it refuses the configuration."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        torch.manual_seed(9)
        with torch.no_grad():
            for parameter in model.parameters():
                # Small embeddings: so the norms' epsilon matters.
                wide = parameter.dim() > 1
                parameter.normal_(0, 0.2) if wide else parameter.uniform_(0.5, 1.5)
            model.get_input_embeddings().weight.mul_(0.02)
            model(torch.tensor([[1, 2, 3]]))
    except Exception:
        return None
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(raw))  # as it was written, not as transformers saves it
    return model


def keys_of(raw: dict[str, Any]) -> set[str]:
    nested = [value for value in raw.values() if isinstance(value, dict)]
    return {*raw, *(key for inner in nested for key in inner), "num_key_value_heads", "truncate"}


def hold_to_transformers(raw: dict[str, Any], directory: Path) -> str:
    """Convert and execute: equal logits, or a refusal that names a key; what it was is returned."""
    model = make_model(raw, directory / "model")
    if model is None:
        return "transformers refuses"
    try:
        plan = convert_model(directory / "model", directory / "out", ConvertOptions(dtype="float32"))
    except EnginixError as e:
        named = [key for key in keys_of(raw) | NEEDED if key in e.what] or (
            ["rope_type"] if "rope scaling" in e.what else []
        )
        assert named and e.fix, f"{raw}: {e}"
        return "refused"
    assert verify_checkpoint(directory / "out").findings == []
    assert list(CheckpointComparison(directory / "out", directory / "model").findings()) == []
    executor, window = Executor.load(directory / "out"), plan.model.sliding_window
    for length in (1, 7, 30, POSITIONS):
        tokens = [(13 * i + 5) % 61 for i in range(length)]
        with torch.no_grad():
            theirs = model(torch.tensor([tokens])).logits[0]
        if length > executor.max_length:
            # The executor has no window, so its limit is what the window holds; or a factor below 1 shortens
            # the context, as trtllm-build does.
            scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
            assert (scaling.get("factor") or 1) < 1 or any(
                f"sliding window {window}" in note for note in plan.notes
            )
            with pytest.raises(UsageError, match=f"accepts at most {executor.max_length}"):
                executor.forward([tokens])
            tokens, theirs = tokens[: executor.max_length], theirs[: executor.max_length]
        ours = executor.forward([tokens])[0]
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error < 2e-5, f"{raw}: {length} tokens, {error:.1e} off"
    return "equal"


def llama(**keys: Any) -> dict[str, Any]:
    return {**SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama", **keys}


def phi3(**keys: Any) -> dict[str, Any]:
    return {**SIZES, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **keys}


LONGROPE = {"type": "longrope", "short_factor": [1.1] * 6, "long_factor": [2.0] * 6}
HALF = {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        (llama(rope_scaling=YARN), "equal"),
        (llama(rope_scaling=YARN, original_max_position_embeddings=16), "equal"),
        (llama(rope_scaling={**YARN, "attention_factor": 0.7}), "equal"),
        (llama(rope_scaling={**YARN, "mscale": 0.707}), "equal"),
        (llama(rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}), "equal"),
        (llama(rope_scaling={**YARN, "mscale": None, "beta_fast": None}), "equal"),
        (llama(rope_scaling={**YARN, "factor": None, "original_max_position_embeddings": 16}), "equal"),
        (llama(rope_scaling={**YARN, "type": "linear"}), "equal"),
        (llama(rope_scaling={"type": "linear", "factor": 0.25}), "equal"),
        (llama(rope_scaling={**YARN, "factor": 1.0, "attention_factor": 0.7}), "refused"),
        (llama(rope_scaling={**YARN, "truncate": False}), "refused"),
        (llama(rope_scaling={**YARN, "attn_factor": 0.7}), "equal"),
        (llama(rope_scaling={**YARN, "novel_factor": 0.7}), "refused"),
        (llama(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "transformers refuses"),
        (llama(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0}), "equal"),
        (llama(partial_rotary_factor=0.5), "equal"),
        ({**SIZES, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
          "sliding_window": 8}, "equal"),
        (llama(rope_scaling=LONGROPE), "refused"),
        (llama(attention_multiplier=0.5), "refused"),
        (llama(is_causal=True), "equal"),
        (llama(is_causal=False), "refused"),
        (llama(layer_types=["full_attention", "sliding_attention"], sliding_window=8), "refused"),
        (phi3(rope_scaling=LONGROPE, original_max_position_embeddings=32), "equal"),
        (phi3(rope_scaling={**LONGROPE, "attention_factor": 1.5}, **HALF), "refused"),
        (phi3(rope_scaling={**LONGROPE, "factor": 4.0}, **HALF), "refused"),
        (phi3(rope_scaling={**LONGROPE, "factor": 2.0}, **HALF), "equal"),
        (phi3(rope_scaling={**LONGROPE, "original_max_position_embeddings": 32}), "equal"),
        (phi3(), "equal"),
        (phi3(head_dim=16), "equal"),
        (phi3(partial_rotary_factor=0.5), "equal"),
        ({**SIZES, **MOE, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "equal"),
        ({**SIZES, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "equal"),
        ({**SIZES, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
          "use_qk_norm": True}, "equal"),
        (llama(use_qk_norm=True), "refused"),
    ],
)  # fmt: skip
def test_named_configurations(raw: dict[str, Any], outcome: str, tmp_path: Path) -> None:
    assert hold_to_transformers(raw, tmp_path) == outcome


@settings(max_examples=60, deadline=None)
@given(configurations())
def test_any_configuration(tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]) -> None:
    event(hold_to_transformers(raw, tmp_path_factory.mktemp("any")))
