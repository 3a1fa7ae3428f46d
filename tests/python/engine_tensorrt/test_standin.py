"""The stand-in builder against what TensorRT-LLM's own Python made of the same requests."""

from __future__ import annotations

from typing import Any

from golden_requests import differences, golden_rows


def build(standin: Any, row: dict[str, Any]) -> dict[str, Any]:
    """What the stand-in makes of a golden row's request, in the row's shape."""
    effects = standin("standin_effects")
    flat = row["checkpoint"]
    pretrained = {
        **flat,
        "mapping": {key: flat[key] for key in ("tp_size", "pp_size")},
        "quantization": {key: flat[key] for key in ("quant_algo", "kv_cache_quant_algo")},
    }
    args = standin("standin_trtllm_build").parser().parse_args(row["arguments"])
    try:
        config, plugins = effects.configure(args, row["sm"])
        effects.check_architecture(flat["architecture"], plugins)
        effects.build(args, pretrained, config, plugins, row["sm"])
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as e:
        return {"result": "error", "error": {**row.get("error", {}), "type": type(e).__name__}}
    paths = ("input_timing_cache", "output_timing_cache")
    config = {name: value for name, value in config.items() if name not in paths}
    return {"result": "ok", "build_config": config, "plugin_config": plugins}


def test_every_golden_request(standin) -> None:
    wrong = [
        (row["checkpoint"], row["sm"], row["arguments"], found)
        for row in golden_rows()
        if (found := differences(row, build(standin, row)))
    ]
    assert not wrong, wrong[:3]


def test_values_are_written_as_the_tool_writes_them(standin) -> None:
    """Booleans, names of types, numbers and null; never "enable" or "disable"."""
    made = [build(standin, row) for row in golden_rows() if row["result"] == "ok"]
    values = {type(v).__name__ for row in made for v in row["plugin_config"].values()}
    assert values == {"bool", "str", "int", "NoneType"}
    assert not {"enable", "disable"} & {v for row in made for v in row["plugin_config"].values()}
