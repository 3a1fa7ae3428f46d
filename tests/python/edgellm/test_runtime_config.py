"""Configurations that NVIDIA's programs write and read are held to the model, key by key."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enginix.errors import ModelError
from enginix.kinds.edgellm.errors import ExportError
from enginix.kinds.edgellm.runtime_config import (
    compare_engine_config,
    compare_runtime_config,
    describe_runtime_config,
)
from enginix.kinds.edgellm.source import ExportSource, read_export_source
from enginix.kinds.edgellm.unsupported_models import (
    parse_export_config,
    require_direct_reading,
)
from enginix.tables import load_table

from .conftest import TINY, environment


def export_config(source: ExportSource) -> dict[str, Any]:
    """What NVIDIA's exporter writes for a model, but for what it takes from its own reader."""
    scaling = dict(source.model.rope.scaling or {"rope_type": source.model.rope.type})
    return {
        **describe_runtime_config(source),
        "rope_scaling": {**scaling, "type": scaling["rope_type"]},
    }


def damage(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 2 + 1
    return [*value, 7] if isinstance(value, list) else f"{value}x"


def test_every_key_of_the_runtimes_configuration_is_compared(model: Path) -> None:
    source = read_export_source(model)
    right = export_config(source)
    compare_runtime_config(right, source, "config.json")
    for key in describe_runtime_config(source):
        with pytest.raises(ExportError, match=key):
            compare_runtime_config({**right, key: damage(right[key])}, source, "config.json")
        with pytest.raises(ExportError, match=key):
            compare_runtime_config({k: v for k, v in right.items() if k != key}, source, "config.json")
    with pytest.raises(ExportError, match="use_rope"):
        compare_runtime_config({**right, "use_rope": False}, source, "config.json")
    with pytest.raises(ExportError, match="sliding_window_size"):
        compare_runtime_config({**right, "sliding_window_size": 4}, source, "config.json")
    with pytest.raises(ExportError, match="eos_token_id"):
        compare_runtime_config({**right, "eos_token_id": []}, source, "config.json")


@pytest.mark.parametrize("builder", ["direct", "onnx"])
def test_every_key_of_an_engines_configuration_is_compared(builder: str, model: Path) -> None:
    source = read_export_source(model)
    right = {**export_config(source), "builder_config": {"max_batch_size": 1}}
    if builder == "direct":
        for key in ("rms_norm_eps", "attention_scaling", "use_vision_bidirectional_attention"):
            del right[key]
        right |= {"checkpoint_identity": {}, "checkpoint_dir": "/model", "checkpoint_weight_bindings": []}
    compare_engine_config(right, source, builder, "config.json")
    for key in set(right) & set(describe_runtime_config(source)):
        with pytest.raises(ExportError, match=key):
            compare_engine_config({**right, key: damage(right[key])}, source, builder, "config.json")
        with pytest.raises(ExportError, match=key):
            missing = {k: v for k, v in right.items() if k != key}
            compare_engine_config(missing, source, builder, "config.json")
    strange = {"checkpoint_dir": "/m"} if builder == "onnx" else {"reduced_vocab_size": 7}
    for more in (strange, {"original_max_position_embeddings": 5}, {"sliding_window_size": 4}):
        with pytest.raises(ExportError, match=next(iter(more))):
            compare_engine_config({**right, **more}, source, builder, "config.json")


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0}


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_every_parameter_of_a_scaling_is_compared(rope: dict[str, Any], tmp_path: Path) -> None:
    raw = json.loads((TINY / "config.json").read_text()) | {"head_dim": 64, "rope_parameters": rope}
    config = parse_export_config(raw, tmp_path)
    source = replace(read_export_source(TINY), model=config)
    right = export_config(source)
    compare_runtime_config(right, source, "config.json")
    reads = load_table("edgellm")["rope"]["types"][rope["rope_type"]]["reads"]
    for key in reads:
        wrong = {**right["rope_scaling"], key: (right["rope_scaling"].get(key) or 1) * 2}
        with pytest.raises(ExportError, match=key):
            compare_runtime_config({**right, "rope_scaling": wrong}, source, "config.json")
    with pytest.raises(ExportError, match="type"):
        compare_runtime_config({**right, "rope_scaling": {"rope_type": "linear"}}, source, "config.json")


def compute_runtime_frequencies(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Frequencies and magnitude by the runtime's formulas (llmRuntimeUtils.cpp), from an export's keys."""
    scaling, size, base = config["rope_scaling"], config["head_dim"], config["rope_theta"]
    plain = base ** -(np.arange(0, size, 2) / size)
    if scaling["type"] == "llama3":
        low, high = (config["rope_scaling"][f"{n}_freq_factor"] for n in ("low", "high"))
        waves = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
        smooth = np.clip((waves - low) / (high - low), 0, 1)
        return (1 - smooth) * plain / scaling["factor"] + smooth * plain, 1.0
    if scaling["type"] == "yarn":
        original, factor = scaling["original_max_position_embeddings"], scaling["factor"]

        def find_dimension(rotations: float) -> float:
            return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

        first = max(math.floor(find_dimension(scaling.get("beta_fast", 32))), 0)
        last = min(math.ceil(find_dimension(scaling.get("beta_slow", 1))), size - 1)
        ramp = np.clip((np.arange(size // 2) - first) / ((last - first) or 0.001), 0, 1)
        default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        return plain / factor * ramp + plain * (1 - ramp), scaling.get("attention_factor") or default
    return plain, 1.0


TINY_SOURCE = read_export_source(TINY)


@given(
    rope=st.fixed_dictionaries(
        {"rope_type": st.sampled_from(["default", "llama3", "yarn"])},
        optional={
            "factor": st.sampled_from([1.0, 2.5, 8.0]),
            "low_freq_factor": st.sampled_from([1.0, 2.0]),
            "high_freq_factor": st.sampled_from([4.0, 8.0]),
            "original_max_position_embeddings": st.sampled_from([64, 512, 2048]),
            "beta_fast": st.sampled_from([16.0, 32.0]),
            "attention_factor": st.sampled_from([None, 1.25]),
            "mscale": st.sampled_from([1.0, 0.7]),
            "mscale_all_dim": st.sampled_from([1.0, 0.5]),
        },
    ),
    theta=st.sampled_from([1e4, 5e5]),
    head=st.sampled_from([64, 128]),
)
def test_accepted_rotary_embeddings_are_the_same_function_in_transformers(
    rope: dict[str, Any], theta: float, head: int
) -> None:
    """The judge is transformers: what passes has the frequencies of its own initializers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    raw = json.loads((TINY / "config.json").read_text()) | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": head,
        "rope_parameters": {**rope, "rope_theta": theta},
    }  # fmt: skip
    raw.pop("rope_theta", None)
    try:
        config = parse_export_config(raw, Path("model"))
    except ModelError:
        return
    source = replace(TINY_SOURCE, model=config)
    frequencies, magnitude = compute_runtime_frequencies(export_config(source))
    made = LlamaConfig(head_dim=head, max_position_embeddings=2048, rope_parameters=raw["rope_parameters"])
    if rope["rope_type"] == "default":
        expected, factor = 1.0 / theta ** (torch.arange(0, head, 2).float() / head), 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](made, "cpu")
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=2e-5)
    assert math.isclose(magnitude, factor, rel_tol=1e-6)


DIRECT = """
import json, sys
from experimental.builder.core.config import DeviceConfig
for path in sys.argv[1:]:
    try:
        c = DeviceConfig.from_pretrained(path)
        rope = c.rope_scaling or {}
        print(json.dumps([c.head_dim, c.num_key_value_heads, c.rms_norm_eps, c.rope_theta,
                          rope.get("rope_type", rope.get("type", "default"))]))
    except Exception as e:
        print(json.dumps(type(e).__name__))
"""
DIRECT_CHANGES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"head_dim": None}, []),
    ({}, ["head_dim"]),
    ({}, ["num_key_value_heads"]),
    ({"num_key_value_heads": None}, []),
    ({"rms_norm_eps": 1e-5}, []),
    ({}, ["rms_norm_eps"]),
    ({"rope_scaling": {}}, []),
    ({"rope_theta": 10000.0}, ["rope_parameters"]),
    ({"rope_theta": 5e5}, ["rope_parameters"]),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, []),
    ({"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, []),
]


def test_the_direct_builder_is_refused_where_it_reads_another_model(edge: Path, tmp_path: Path) -> None:
    """The judge is the builder's own reader, which takes config.json without transformers' defaults."""
    models = []
    for number, (values, removed) in enumerate(DIRECT_CHANGES):
        raw = json.loads((TINY / "config.json").read_text()) | values
        directory = tmp_path / f"model-{number}"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k not in removed}))
        models.append(directory)
    done = subprocess.run(
        [edge, "-c", DIRECT, *models], env=environment(), capture_output=True, text=True, check=True
    )
    read = [json.loads(line) for line in done.stdout.splitlines()]
    agreed = 0
    for directory, answer in zip(models, read, strict=True):
        try:
            config = parse_export_config(json.loads((directory / "config.json").read_text()), directory)
        except ModelError:
            continue
        meant = [
            config.head_dim,
            config.num_kv_heads,
            config.norm_epsilon,
            config.rope.base,
            config.rope.type,
        ]
        try:
            require_direct_reading(config)
        except ModelError as e:
            assert answer != meant, (directory, answer)
            assert "NVIDIA's builder reads" in str(e)
        else:
            assert answer == meant, (directory, answer)
            agreed += 1
    assert 4 <= agreed < len(models) - 3
