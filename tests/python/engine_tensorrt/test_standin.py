"""The stand-in builder against what TensorRT-LLM's own Python made of the same requests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden
from enginix.errors import UsageError
from enginix.kinds.llmapi import llmapi_engine
from enginix.tables import load_table
from golden_requests import differences, golden_rows


def build(standin: Any, parser: argparse.ArgumentParser, row: dict[str, Any]) -> dict[str, Any]:
    """Run the stand-in on a golden row's request; returns its settings in the row's shape."""
    effects = standin("standin_effects")
    flat = row["checkpoint"]
    pretrained = {
        **flat,
        "mapping": {key: flat[key] for key in ("tp_size", "pp_size")},
        "quantization": {key: flat[key] for key in ("quant_algo", "kv_cache_quant_algo")},
    }
    args = parser.parse_args(row["arguments"])
    try:
        config, plugins = effects.configure(args, row["sm"])
        effects.check_architecture(flat["architecture"], plugins)
        effects.build(args, pretrained, config, plugins, row["sm"])
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as e:
        return {"result": "error", "error": {**row.get("error", {}), "type": type(e).__name__}}
    paths = ("input_timing_cache", "output_timing_cache")
    config = {name: value for name, value in config.items() if name not in paths}
    return {"result": "ok", "build_config": config, "plugin_config": plugins}


@pytest.fixture(scope="module")
def built(standin: Any) -> list[dict[str, Any]]:
    """What the stand-in makes of each golden row."""
    parser = standin("standin_trtllm_build").parser()
    return [build(standin, parser, row) for row in golden_rows()]


def test_every_golden_request(built: list[dict[str, Any]]) -> None:
    wrong = [
        (row["checkpoint"], row["sm"], row["arguments"], found)
        for row, made in zip(golden_rows(), built, strict=True)
        if (found := differences(row, made))
    ]
    assert not wrong, wrong[:3]


def test_values_are_written_as_the_tool_writes_them(built: list[dict[str, Any]]) -> None:
    """Booleans, names of types, numbers and null; never "enable" or "disable"."""
    made = [row for row in built if row["result"] == "ok"]
    values = {type(v).__name__ for row in made for v in row["plugin_config"].values()}
    assert values == {"bool", "str", "int", "NoneType"}
    assert not {"enable", "disable"} & {v for row in made for v in row["plugin_config"].values()}


# What TensorRT-LLM's own converters wrote; Phi-3's pipeline stages among it are marked defective.
SOUND = [c for c in golden.conversions() if c.ok and not c.defect]


def load(standin: Any, directory: Path, ranks: int) -> None:
    loader = standin("standin_loader")
    config = json.loads((directory / "config.json").read_text())
    for rank in range(ranks):
        loader.check_tensors(config, rank, loader.header(directory / f"rank{rank}.safetensors"))


@pytest.mark.parametrize("case", SOUND, ids=lambda c: c.id)
def test_loads_what_their_converters_wrote(standin, case) -> None:
    load(standin, case.output, case.tensor_parallel * case.pipeline_parallel)


def test_refuses_what_their_loader_refuses(standin) -> None:
    """A tensor that is taken away or misshapen is found; rotary tables and key-value scales may be absent."""
    loader = standin("standin_loader")
    for name in ("llama-bf16", "mixtral-bf16", "phi3-bf16", "qwen2moe-bf16", "qwen3-bf16", "llama-fp8"):
        case = next(c for c in SOUND if c.case == name and c.tensor_parallel == 1)
        config = json.loads((case.output / "config.json").read_text())
        whole = loader.header(case.output / "rank0.safetensors")
        for tensor, (dtype, shape) in whole.items():
            if golden.is_rope_constant(tensor) or "kv_cache" in tensor:
                continue
            with pytest.raises(RuntimeError, match="Required but not provided"):
                loader.check_tensors(config, 0, {k: v for k, v in whole.items() if k != tensor})
            if tensor.endswith(".weight"):
                with pytest.raises(ValueError, match="the layer has"):
                    loader.check_tensors(config, 0, whole | {tensor: (dtype, (*shape, 1))})


def test_phi3_with_a_pipeline_does_not_load(standin) -> None:
    case = next(c for c in golden.conversions() if c.case == "phi3-bf16" and c.pipeline_parallel == 2)
    with pytest.raises(RuntimeError, match="Required but not provided"):
        load(standin, case.output, 2)


NESTED = st.none() | st.booleans() | st.integers(-2, 4) | st.floats(0, 2) | st.lists(st.integers(0, 3))
TABLES = load_table("llm_args")


@st.composite
def arguments(draw: Any) -> dict[str, Any]:
    """An argument of the table, with names of its class and values of any type."""
    name = draw(st.sampled_from(sorted(TABLES["arguments"])))
    row = TABLES["arguments"][name]
    if row["type"] != "object" or draw(st.integers(0, 9)) == 0:
        return {name: draw(NESTED | st.sampled_from(row.get("choices") or ["x"]))}
    value: dict[str, Any] = {}
    fields = TABLES["classes"].get(row.get("class"), {}).get("fields", {})
    if "dispatch" in row:
        choice = TABLES["dispatch"][row["dispatch"]]
        kind = draw(st.sampled_from(sorted(choice["classes"])))
        value[choice["key"]] = kind
        fields = TABLES["classes"][choice["classes"][kind]]["fields"]
    for key in draw(st.lists(st.sampled_from(sorted(fields) or ["x"]), max_size=3)):
        value[key] = draw(NESTED | st.sampled_from(fields.get(key, {}).get("choices") or ["x"]))
    return {name: value}


@settings(max_examples=300, deadline=None)
@given(given_=arguments())
def test_an_argument_that_is_taken_is_one_of_the_schema(standin, given_) -> None:
    try:
        llmapi_engine.check_llm_arguments(given_, "trtllm-1.1.0")
    except UsageError:
        return
    standin("llmapi").check_fields("TorchLlmArgs", given_)
