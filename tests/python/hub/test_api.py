"""Answers of a hub, taken apart: any JSON is a file list or a HubError; facts of any config."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.errors import HubError, ModelError
from enginix.hub import api, model_metadata
from enginix.hub.lock import Lock, LockedFile, parse_lock

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
hex40 = st.just("a" * 40)
rows = st.fixed_dictionaries(
    {"path": anything | st.text(), "size": anything | st.integers(0, 99), "oid": anything | hex40},
    optional={
        "lfs": anything
        | st.fixed_dictionaries(
            {
                "oid": anything | st.just("b" * 64),
                "size": anything,
                "pointerSize": anything | st.integers(120, 140),
            }
        )
    },
)


@settings(max_examples=400, deadline=None)
@given(rows)
def test_a_row_of_a_listing_is_a_file_or_a_hub_error(row: dict[str, Any]) -> None:
    try:
        found = api._parse_remote_file(row, "a/b")
    except HubError:
        return
    assert found.path == row["path"] and found.size == row["size"] >= 0
    assert found.sha256 is None or len(found.sha256) == 64


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"cardData": anything | st.dictionaries(st.just("license"), anything), "tags": anything}
    )
)
def test_a_licence_is_a_short_line_or_none(raw: dict[str, Any]) -> None:
    found = api._read_license(raw)
    assert found is None or (found and found.isprintable() and len(found) <= 200)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [k for keys in model_metadata.INTEGERS.values() for k in keys]
            + ["architectures", "model_type", "dtype", "quantization_config", "text_config", "auto_map"]
            + ["layer_types", "sliding_window", "use_sliding_window", "max_window_layers"]
        ),
        anything,
        max_size=6,
    ),
    st.none() | st.dictionaries(st.sampled_from(["producer", "quantization"]), anything, max_size=2),
)
def test_facts_of_any_configuration_fit_into_a_lock(
    config: dict[str, Any], modelopt: dict[str, Any] | None
) -> None:
    files = {model_metadata.CONFIG: json.dumps(config).encode()}
    if modelopt is not None:
        files[model_metadata.MODELOPT] = json.dumps(modelopt).encode()
    try:
        found = model_metadata.extract_model_metadata(files, "a/b")
    except ModelError:
        return
    lock = Lock("a/b", "0" * 40, None, False, found, (LockedFile("x", 1, "a" * 64),))
    assert parse_lock(lock.dump(), "x").model == found


@pytest.mark.parametrize(
    ("quantization", "algorithm", "cache"),
    [
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "FP8",
                "kv_cache_scheme": {"num_bits": 8, "type": "float"},
            },
            "FP8",
            "FP8",
        ),
        ({"quant_method": "fp8", "fmt": "e4m3"}, "FP8", None),
        ({"quant_method": "awq", "bits": 4}, "AWQ", None),
        (None, None, None),
    ],
)
def test_quantization_as_configurations_say_it(
    quantization: Any, algorithm: str | None, cache: str | None
) -> None:
    config = {"architectures": ["X"], "quantization_config": quantization}
    found = model_metadata.extract_model_metadata({model_metadata.CONFIG: json.dumps(config).encode()}, "a/b")
    assert (found["quantization"], found["kvCacheQuantization"]) == (algorithm, cache)


def test_the_method_of_other_quantizers_is_told() -> None:
    """An algorithm named FP8 may be ModelOpt's or not; conversion takes the one and not the other."""
    files = {
        name: json.dumps({"architectures": ["X"], "quantization_config": config}).encode()
        for name, config in {
            "block": {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "other": {"quant_method": "compressed-tensors"},
            "own": {"quant_method": "modelopt", "quant_algo": "FP8"},
        }.items()
    }
    found = {
        name: model_metadata.extract_model_metadata({model_metadata.CONFIG: text}, "a/b")
        for name, text in files.items()
    }
    assert found["block"]["quantizationMethod"] == "fp8-block"
    assert found["other"]["quantizationMethod"] == "compressed-tensors"
    assert found["own"]["quantizationMethod"] == "modelopt"
    sidecar = b'{"quantization": {"quant_algo": "FP8"}}'
    both = model_metadata.extract_model_metadata(
        {model_metadata.CONFIG: files["other"], model_metadata.MODELOPT: sidecar}, "a/b"
    )
    assert "quantizationMethod" not in both and both["quantization"] == "FP8"


def test_sizes_that_a_configuration_leaves_to_its_class() -> None:
    config = {"text_config": {"num_attention_heads": 8, "hidden_size": 64, "num_hidden_layers": 2}}
    found = model_metadata.extract_model_metadata({model_metadata.CONFIG: json.dumps(config).encode()}, "a/b")
    assert (found["kvHeads"], found["headSize"], found["layers"]) == (8, 8, 2)
