"""The tables against the contract and against each other."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix import letter_case
from enginix.checkpoint.formats import format_of
from enginix.errors import UsageError
from enginix.kinds.llmapi import llmapi_engine
from enginix.kinds.tensorrt.build import options
from enginix.runtime import table as runtimes
from enginix.runtime.failures import match_failure
from enginix.tables import load_table

STANDIN = Path(__file__).parents[2] / "standin"
CONTRACT = json.loads((STANDIN / "contract" / "build_flags.json").read_text())
TABLE = load_table("build_options")


@pytest.fixture(scope="module")
def parser(standin):
    """The stand-in's command line, made from the contract alone."""
    return standin("standin_trtllm_build").parser()


def test_every_flag_of_the_contract_is_in_the_table() -> None:
    ours = {r["flag"] for part in ("limits", "options", "own") for r in TABLE[part].values()}
    assert ours == {row["flag"] for row in CONTRACT["flags"]}


def test_every_removed_flag_is_in_the_table() -> None:
    gone = {f for row in CONTRACT["removed_or_moved"] for f in re.findall(r"--\w+", row["flag"])} - {
        "--use_fused_mlp"
    }
    assert gone <= {r["flag"] for r in TABLE["removed"].values()}


def value_of(row):
    return {
        "switch": st.booleans(),
        "bool": st.booleans(),
        "int": st.integers(0, 1 << 20),
        "string": st.text("abcdef/._", min_size=1, max_size=8),
        "strings": st.lists(
            st.sampled_from(row["choices"]) if row["choices"] else st.text("abcdef", min_size=1, max_size=5),
            min_size=1,
            max_size=3,
        ),
        "enum": st.sampled_from(row["choices"] or ["x"]),
    }[row["type"]]


OPTIONS = st.fixed_dictionaries({}, optional={n: value_of(r) for n, r in TABLE["options"].items()})


@given(OPTIONS)
def test_every_command_line_is_understood(values) -> None:
    make = test_every_command_line_is_understood.parser  # type: ignore[attr-defined]
    checked = options.check_build_options(values, "trtllm-1.2.1")
    parsed = vars(
        make.parse_args(
            [*options.EngineLimits(8, 1024, 2048, 8192).flags(), *options.format_option_flags(checked)]
        )
    )
    assert parsed["max_batch_size"] == 8 and parsed["max_seq_len"] == 2048
    for name, value in values.items():
        got, kind = parsed[letter_case.to_snake_case(name)], TABLE["options"][name]["type"]
        expected = {True: "enable", False: "disable"}[value] if kind == "switch" else value
        assert got == expected


@pytest.fixture(autouse=True)
def _parser(parser):
    test_every_command_line_is_understood.parser = parser  # type: ignore[attr-defined]


@given(OPTIONS)
def test_command_line_spelling_comes_back(values) -> None:
    for name, value in values.items():
        kind = TABLE["options"][name]["type"]
        text = (
            ",".join(value)
            if kind == "strings"
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )
        assert options.parse_plugin_option(f"{letter_case.to_kebab_case(name)}={text}") == (name, value)


@given(
    st.text(max_size=20),
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers()),
)
def test_any_option_is_accepted_or_refused_by_name(name, value) -> None:
    try:
        options.format_option_flags(options.check_build_options({name: value}, "trtllm-1.2.1"))
    except UsageError as e:
        assert name in str(e)


@given(st.text(max_size=30))
def test_any_plugin_text_is_parsed_or_refused(text) -> None:
    try:
        options.parse_plugin_option(text)
    except UsageError as e:
        assert "NAME=VALUE" in str(e)


SIZE = st.none() | st.integers(-2, 5000)


@given(st.none() | st.integers(1, 4096), st.fixed_dictionaries({n: SIZE for n in TABLE["limits"]}))
def test_limits_are_whole_or_refused(context, given_) -> None:
    try:
        limits = options.resolve_limits(context, given_)
    except UsageError:
        return
    assert limits.maxInputLen <= limits.maxSeqLen <= (context or limits.maxSeqLen)
    assert limits.maxNumTokens >= limits.maxBatchSize * limits.maxBeamWidth
    assert len(limits.flags()) == 2 * len(TABLE["limits"])


def list_named_formats() -> dict[str, list[str]]:
    """Every algorithm that a table names, by where it does."""
    quantize, support = load_table("quantize"), load_table("engine_support")
    return {
        "quantize": [row["algorithm"] for row in (*quantize["formats"].values(), quantize["mixed"])],
        "engine_support suggest": support["suggest"]["formats"],
        "engine_support warnings": [
            a for w in support["warnings"] for a in w["when"].get("quantizations", ())
        ],
        "gates": list(load_table("gates")["formats"]),
        "gpuFormats": list(load_table("number_formats")["gpuFormats"].values()),
        "lighter": load_table("number_formats")["lighter"],
        "build options": [
            algorithm
            for rule in load_table("build_options")["rules"]
            for algorithm in rule.get("needs", {}).get("quantizations", ())
        ],
    }


@pytest.mark.parametrize("where", list_named_formats())
def test_every_named_format_is_a_row(where: str) -> None:
    assert set(list_named_formats()[where]) <= set(load_table("number_formats")["algorithms"])


def test_every_named_kv_cache_is_a_row() -> None:
    caches = {row["algorithm"] for row in load_table("quantize")["kvCache"].values()}
    caches |= {c for w in load_table("engine_support")["warnings"] for c in w["when"].get("kvCaches", ())}
    assert caches <= set(load_table("number_formats")["kvCache"])


def test_formats_of_gpus_have_an_algorithm() -> None:
    table = load_table("number_formats")
    needed = {f for row in table["algorithms"].values() for f in row["needs"]}
    offered = {f for row in load_table("gpus")["gpus"].values() for f in row["formats"]}
    assert needed | offered <= set(table["gpuFormats"])


def test_rows_of_number_formats_agree_with_themselves() -> None:
    table = load_table("number_formats")
    claims: dict[str, str] = {}
    for name, row in table["algorithms"].items():
        assert set(row) == set(table["algorithms"]["FP8"]), name
        assert row["engine"] or not row["convert"], name
        assert row["convert"] or (row["why"] and row["instead"]), name
        for alias in (name, *row["aliases"]):
            assert claims.setdefault(alias.upper(), name) == name, alias
        assert (row["bitsPer128"] is None) == (row["bitsSource"] is None), name
    for name in table["lighter"]:
        assert table["algorithms"][name]["bitsPer128"], name


def test_every_converted_format_has_a_writer() -> None:
    for name, row in load_table("number_formats")["algorithms"].items():
        if row["convert"] and name != "MIXED_PRECISION":
            assert format_of(None if name == "NO_QUANT" else name, "trtllm"), name


def test_tables_agree_on_pipelines() -> None:
    """The converter knows architectures, the engine's checks classes."""
    rows, classes = (
        load_table("architectures")["architectures"],
        load_table("engine_classes"),
    )
    assert {r["engineClass"] for r in rows.values() if "noPipeline" in r} == set(classes["noPipeline"])
    for name, row in rows.items():
        assert row.get("noPipeline") == classes["noPipeline"].get(row["engineClass"]), name


def test_every_runtime_is_whole() -> None:
    for name in runtimes.list_runtimes():
        found = runtimes.find_runtime(name)
        if found.row.get("tritonImages"):
            assert found.version and found.tensorrt and found.driver and found.site_packages, name
        if "images" in found.row:
            assert set(found.environment) >= {"PATH", "LD_LIBRARY_PATH"}, name
            assert found.row["defaultImage"] in found.row["images"], name


def list_unsourced_runtime_fields(table: dict[str, Any]) -> list[str]:
    """Return fields that have a value and no known source, or a source and no value."""
    fields = []
    for name, row in table["runtimes"].items():
        values = set(row) - {"source", "sources", "imageNote", "details", "defaultImage"}
        known = {field for field in values if row[field] not in (None, [])}
        sourced = {field for field, source in row["sources"].items() if source in table["sources"]}
        fields += [f"{name}.{field}" for field in known ^ sourced]
        for tag, image in row.get("images", {}).items():
            hashes = image["hashes"].items()
            fields += [f"{name}.images.{tag}.{system}" for system, h in hashes if not h.get("source")]
    return fields


def list_unsourced_formats(table: dict[str, Any]) -> list[str]:
    """Return number formats without a source, of their bits, or of what Edge-LLM takes."""
    rows = {**table["algorithms"], **{f"cache {name}": row for name, row in table["kvCache"].items()}}
    support = load_table("engine_support")["sources"]
    known = {*table["sources"], *support}
    fields = [name for name, row in rows.items() if not row["sources"] or not set(row["sources"]) <= known]
    for name, row in rows.items():
        if (row.get("bitsPer128") or row.get("bits")) is not None and not row["bitsSource"]:
            fields.append(f"{name}.bits")
        if isinstance(row.get("edgellm"), dict) and not row["edgellm"].get("source"):
            fields.append(f"{name}.edgellm")
    return fields


def list_unsourced_gpus(table: dict[str, Any]) -> list[str]:
    return [name for name, row in table["gpus"].items() if not str(row.get("source") or "").strip()]


def test_every_field_of_a_runtime_has_its_source_or_is_null() -> None:
    assert list_unsourced_runtime_fields(load_table("runtimes")) == []


def test_every_format_and_gpu_has_its_source() -> None:
    assert list_unsourced_formats(load_table("number_formats")) == []
    assert list_unsourced_gpus(load_table("gpus")) == []


def test_a_missing_source_is_found() -> None:
    """Each row loses a source, and each time that one is named."""
    table = load_table("runtimes")
    for name, row in table["runtimes"].items():
        for field in row["sources"]:
            changed = copy.deepcopy(table)
            del changed["runtimes"][name]["sources"][field]
            assert list_unsourced_runtime_fields(changed) == [f"{name}.{field}"]
            changed["runtimes"][name]["sources"][field] = "hearsay"
            assert list_unsourced_runtime_fields(changed) == [f"{name}.{field}"]
    formats = load_table("number_formats")
    for part, prefix in (("algorithms", ""), ("kvCache", "cache ")):
        for name in formats[part]:
            for lost in ([], ["hearsay"]):
                changed = copy.deepcopy(formats)
                changed[part][name]["sources"] = lost
                assert list_unsourced_formats(changed) == [f"{prefix}{name}"]
    gpus = load_table("gpus")
    for name in gpus["gpus"]:
        without = {key: value for key, value in gpus["gpus"][name].items() if key != "source"}
        assert list_unsourced_gpus({"gpus": {**gpus["gpus"], name: without}}) == [name]


def test_arguments_of_the_llm_class() -> None:
    assert llmapi_engine.check_llm_arguments(
        {"enable_chunked_prefill": True, "kv_cache_config": {"max_tokens": 5}}, "trtllm-1.2.1"
    )
    for arguments, said in (
        ({"enable_chunked_prefil": True}, "did you mean enable_chunked_prefill"),
        ({"max_batch_size": 3}, "limits.maxBatchSize"),
        ({"fast_build": True}, "TensorRT backend alone"),
        ({"enable_chunked_prefill": "yes"}, "bool"),
        ({"kv_cache_config": {"max_tokns": 5}}, "did you mean max_tokens"),
        ({"kv_cache_config": {"max_tokens": True}}, "int"),
        ({"kv_cache_config": {"free_gpu_memory_fraction": 90}}, "number at least 0, at most 1"),
        ({"kv_cache_config": {"free_gpu_memory_fraction": None}}, "free_gpu_memory_fraction: is None"),
        ({"kv_cache_config": {"max_attention_window": []}}, "a list of whole numbers"),
        ({"kv_cache_config": {"max_attention_window": [0]}}, "at least 1"),
        ({"kv_cache_config": {"mamba_ssm_cache_dtype": "fp8"}}, "bfloat16"),
        ({"kv_cache_config": None}, "an object"),
        ({"orchestrator_type": "slurm"}, "rpc, ray"),
        ({"stream_interval": 0}, "at least 1"),
        ({"batch_wait_max_tokens_ratio": 1.5}, "at most 1"),
        ({"cuda_graph_config": {"max_batchsize": 8}}, "did you mean max_batch_size"),
        ({"cuda_graph_config": {"batch_sizes": ["8"]}}, "a list of whole numbers"),
        ({"cuda_graph_config": {"max_batch_size": -1}}, "at least 0"),
        ({"moe_config": {"backend": "CUTLAS"}}, "CUTLASS"),
        ({"moe_config": None}, "an object"),
        ({"scheduler_config": {"capacity_scheduler_policy": "max_utilization"}}, "MAX_UTILIZATION"),
        ({"scheduler_config": {"dynamic_batch_config": {}}}, "is missing"),
        ({"scheduler_config": {"dynamic_batch_config": {"enable": True}}}, "unknown key 'enable'"),
        ({"speculative_config": {"max_draft_len": 4}}, "decoding_type is None"),
        ({"speculative_config": {"decoding_type": "Lookahead"}}, "the TensorRT backend alone"),
        ({"speculative_config": {"decoding_type": "Medusa"}}, "the TensorRT backend alone"),
        ({"speculative_config": {"decoding_type": "Eagle"}}, "max_draft_len is missing"),
        ({"speculative_config": {"decoding_type": "NGram", "max_draft_length": 4}}, "did you mean max_draft"),
        ({"sparse_attention_config": {"algorithm": "rocket", "topp": 1}}, "did you mean top"),
        ({"cache_transceiver_config": {"kv_transfer_timeout_ms": 0}}, "at least 1"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            llmapi_engine.check_llm_arguments(arguments, "trtllm-1.2.1")
    with pytest.raises(UsageError, match="unknown to the runtime"):
        llmapi_engine.check_llm_arguments({"nvfp4_gemm_config": {}}, "trtllm-1.1.0")


def test_arguments_of_a_runtime_whose_text_was_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    """They are passed on with a warning each; only what enginix writes itself is refused."""
    arguments: dict[str, Any] = {
        "stream_intervall": 4,
        "cuda_graph_config": {"max_batchsize": 8},
        "stream_interval": 0,
        "fast_build": True,
    }
    for runtime in ("trtllm-1.3.0rc20", "trtllm-1.4.0rc1", "trtllm-1.4.0rc2-unverified"):
        assert llmapi_engine.check_llm_arguments(arguments, runtime) == arguments
        told = capsys.readouterr().err
        assert told.count("warning: ") == len(arguments) and f"the text of {runtime} was not read" in told
        with pytest.raises(UsageError, match="enginix writes it itself"):
            llmapi_engine.check_llm_arguments({"max_batch_size": 3}, runtime)
    for argument in load_table("llm_args")["arguments"].values():
        assert set(argument["runtimes"]) <= set(load_table("llm_args")["read"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"kv_cache_config": {"free_gpu_memory_fraction": 1, "max_attention_window": [128, 4096]}},
        {"kv_cache_config": {"max_tokens": None, "host_cache_size": 0, "dtype": "fp8"}},
        {"cuda_graph_config": None, "torch_compile_config": {"capture_num_tokens": [64]}},
        {"cuda_graph_config": {"batch_sizes": [1, 2], "enable_padding": True}},
        {"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 3, "relaxed_delta": 0.6}},
        {
            "speculative_config": {
                "decoding_type": "Eagle",
                "max_draft_len": 3,
                "eagle_choices": [[0], [0, 1]],
            }
        },
        {"moe_config": {"backend": "TRTLLM", "load_balancer": {"num_slots": 8}}},
        {"moe_config": {"load_balancer": "balancer.yaml"}, "orchestrator_type": "ray"},
        {"scheduler_config": {"context_chunking_policy": None}, "guided_decoding_backend": None},
        {"lora_config": {"max_lora_rank": 8}, "cp_config": {"anything": 1}},
    ],
)
def test_nested_arguments_that_are_right(arguments) -> None:
    assert llmapi_engine.check_llm_arguments(arguments, "trtllm-1.2.1") == arguments


# What the facts' known failures print, or the nearest to it that they tell.
SAID = {
    "The engine plan file is for compute 8.9, expecting compute 9.0 got 8.9": "the GPU is not one",
    "Error Code 6: expecting library version 10.14.1 got 10.13.3": "TensorRT of the engine",
    "FP4 Gemm not supported before Blackwell": "needs a Blackwell GPU",
    "RuntimeError: INT8/INT4 quantization is not supported on SM 100": "refuses INT8, INT4",
    "AssertionError: Unsupported model architecture: GptOssForCausalLM": "not one of the engine path",
    "KeyError: 'DeepseekV3ForCausalLM'": "not one of the engine path",
    "RuntimeError: Required but not provided tensors:{'lm_head.weight'}": "lacks tensors",
    "trtllm-build: error: unrecognized arguments: --foo": "does not know an option",
    "ValueError: max_workers must be greater than 0": "no GPU is visible",
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB": "the GPU's memory",
    "terminate called after throwing an instance of 'std::bad_alloc'": "the machine's memory",
    "OSError: [Errno 28] No space left on device: '/nix/store/x'": "the disk is full",
    "All nodes which are allocated for this job are already filled.": "no slot",
    "ImportError: libmpi.so.40: cannot open shared object file": "library of the runtime",
    "PermissionError: [Errno 13] Permission denied: '/homeless-shelter'": "writes to HOME",
    "FileNotFoundError: [Errno 2] No such file or directory: '/sbin/ldconfig'": "asks ldconfig",
    "ModuleNotFoundError: No module named 'tensorrt_llm.bindings'": "source tree",
    "ModuleNotFoundError: No module named 'tensorrt_llm'": "not one of this runtime's images",
    "AssertionError: streamingllm": "streamingllm",
    "RuntimeError: FP8 FMHA is only supported on Ada or Hopper": "FP8 context attention",
    "ORTE was unable to open the session dir": "OpenMPI does not start",
    "RuntimeError: An attempt has been made to start a new process before the current process has "
    "finished its bootstrapping phase.": "__main__ guard",
    "calibration: detected negative values after abs, could be overflow": "calibration fails",
    "Error Code 10: Could not find any implementation for node {ForeignNode[...]}": "finds no kernel",
}


def test_every_known_failure_has_an_example() -> None:
    """A row that no example reaches first may be hidden behind another one."""
    reached = {found.cause for text in SAID if (found := match_failure([text])) is not None}
    assert {row["cause"] for row in load_table("failures")["failures"]} == reached


@pytest.mark.parametrize("text", SAID)
def test_known_failures(text) -> None:
    found = match_failure(["noise", text, "more noise"])
    assert found is not None and SAID[text] in found.cause and found.reference and found.line == text


def test_known_failures_are_silent_about_the_rest() -> None:
    ordinary = [
        "[I] Total time of building all engines: 00:01:02",
        "[W] input timing cache does not exist",
        "loading weights",
    ]
    assert match_failure(ordinary) is None


@given(st.lists(st.text(max_size=200), max_size=5))
def test_any_output_can_be_matched(lines) -> None:
    match_failure(lines)


# What of a table is a claim about somebody else's software or hardware.
CLAIMS = {
    "gpus": ("gpus",),
    "runtimes": ("runtimes",),
    "number_formats": ("algorithms", "kvCache"),
    "engine_support": ("warnings",),
    "build_options": ("limits", "options", "removed", "rules", "profiles"),
    "llm_args": ("arguments", "classes", "dispatch"),
    "failures": ("failures", "stall", "killed"),
    "environment": ("variables",),
    "memory_constants": ("defaults",),
    "kinds": ("kinds",),
    "edgellm": ("architectures", "memory"),
}


def rows(part):
    if isinstance(part, list):
        return part
    own = any(isinstance(part.get(k), str) for k in ("source", "reference"))
    return [part] if own else list(part.values())


@pytest.mark.parametrize("name", CLAIMS)
def test_every_row_has_a_source(name) -> None:
    whole = load_table(name)
    for part in CLAIMS[name]:
        found = rows(whole[part])
        assert found
        for row in found:
            named = row.get("sources") or [row.get("source") or row.get("reference")]
            assert named and all(isinstance(s, str) and s for s in named), (part, row)
            if set(named) & set(whole.get("sources", ())):
                assert set(named) <= set(whole["sources"]), (part, row)


def test_hashes_of_wheels_are_those_of_the_lock() -> None:
    """pip wrote the index's own hashes of every wheel of that release."""
    block = (Path(__file__).parent / "edgellm_wheels.txt").read_text()
    assert "tensorrt-edgellm==0.11.0" in block
    wheels = load_table("runtimes")["runtimes"]["edgellm-0.11.0"]["wheel"]
    ours = {h for rows_ in wheels.values() for name, h in rows_.items() if name != "platform"}
    assert ours == set(re.findall(r"sha256:([0-9a-f]{64})", block)) and len(ours) == 6
    # The environment that exports has the same, for its Python.
    lock = json.loads((STANDIN.parents[1] / "nix/python/locks/edgellm.json").read_text())
    for system, file in lock["wheels"]["tensorrt-edgellm"]["files"].items():
        assert wheels[system]["cp311"] == file["sha256"] and wheels[system]["platform"] in file["file"]
