"""Requests, checkpoints and models that say anything: read or refused by name, never a crash."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.errors import EnginixError
from enginix.kinds.llmapi.llmapi_engine import LlmApiRequest
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.kinds.tensorrt.build.request import REQUEST_KEYS, make_build_request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
    max_leaves=6,
)
SMALL = settings(deadline=None, max_examples=150)
FIELDS = ("architecture", "dtype", "mapping", "quantization", "max_position_embeddings")
MODEL = ("architectures", "text_config", "quantization_config", "torch_dtype")
MAPPING = st.dictionaries(st.sampled_from(["tp_size", "pp_size"]), JSON)
QUANTIZATION = st.dictionaries(st.sampled_from(["quant_algo", "kv_cache_quant_algo"]), JSON)


@SMALL
@given(config=st.fixed_dictionaries({}, optional={f: JSON | MAPPING | QUANTIZATION for f in FIELDS}))
def test_any_checkpoint(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "rank0.safetensors").write_bytes(b"x")
    try:
        found = BuildCheckpoint.read(tmp_path)
        assert found.world_size >= 1 and found.heaviest >= 0
    except EnginixError as e:
        assert str(tmp_path) in str(e)


@SMALL
@given(config=st.dictionaries(st.sampled_from([*MODEL, *FIELDS]), JSON | QUANTIZATION))
def test_any_model(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        assert BuildCheckpoint.of_model(tmp_path).heaviest == 0
    except EnginixError as e:
        assert str(tmp_path) in str(e)


LIMITS = st.dictionaries(
    st.sampled_from(["maxBatchSize", "maxSeqLen", "maxInputLen", "maxNumTokens", "x"]), JSON
)
OPTIONS = st.dictionaries(st.sampled_from(["gemmPlugin", "loraDir", "maxDraftLen", "x"]), JSON)
GOOD = {"target": "h200", "runtime": "trtllm-1.2.1"}


@SMALL
@given(
    asked=st.dictionaries(st.sampled_from(sorted(REQUEST_KEYS)), JSON),
    more=st.fixed_dictionaries({}, optional={"limits": LIMITS, "options": OPTIONS}),
    good=st.booleans(),
)
def test_any_request(tmp_path: Path, asked, more, good):
    (tmp_path / "config.json").write_text('{"architecture": "LlamaForCausalLM", "dtype": "float16"}')
    (tmp_path / "rank0.safetensors").write_bytes(b"x")
    whole = {**asked, **more, **(GOOD if good else {})}
    for make in (lambda: make_build_request(whole, tmp_path, tmp_path), lambda: LlmApiRequest.parse(whole)):
        try:
            make()
        except EnginixError as e:
            assert str(e)
