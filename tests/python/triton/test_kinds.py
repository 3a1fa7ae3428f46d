"""Repositories of the kinds tensorrt and llmapi, field by field against NVIDIA's contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix import manifest
from enginix.cli import main
from enginix.errors import EnginixError, RepositoryError, UsageError
from enginix.kinds.tensorrt.tensorrt_models import NvidiaModelOptions
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.kinds.triton_repository.validate import validate_repository
from enginix.tables import load_table
from enginix.triton import config, contract
from enginix.triton.options import RepositoryOptions
from enginix.triton.parameters import check_parameters

from .conftest import RUNTIME, as_tensorrt

CONTRACT = load_table("triton_contract")
CHAT = load_table("triton_chat")
PYTHON_MODELS = ("preprocessing", "postprocessing", "tensorrt_llm_bls")


@pytest.fixture
def engine(hand_made: Any) -> Path:
    """An engine directory of kind tensorrt: what a repository reads, no plan in it."""
    return as_tensorrt(hand_made)


@pytest.fixture
def llmapi(hand_made: Any) -> Path:
    directory: Path = hand_made.directory
    (directory / "model").mkdir()
    (directory / "llm_args.yaml").write_text(json.dumps({"max_batch_size": 4, "tensor_parallel_size": 2}))
    hand_made.rewrite(kind="llmapi", runtime=RUNTIME)
    return directory


def made(engine: Path, tmp_path: Path, options: RepositoryOptions | None = None, **models: Any) -> Path:
    build_triton_repository(engine, tmp_path / "repository", options, models=NvidiaModelOptions(**models))
    return tmp_path / "repository"


def written(repository: Path, model: str) -> Any:
    return config.read_pbtxt(repository / model / "config.pbtxt")


def assert_tensors(found: Any, rows: list[dict[str, Any]], datatypes: dict[str, str]) -> None:
    """Every tensor, in order, with each of its fields; the batch dimension is Triton's."""
    assert [t.name for t in found] == [r["name"] for r in rows]
    for tensor, row in zip(found, rows, strict=True):
        wanted = datatypes.get(row["type"][2:-1], row["type"])
        assert config.type_name(tensor.data_type) == f"TYPE_{wanted}", tensor.name
        assert list(tensor.dims) == row["dims"], tensor.name
        if hasattr(tensor, "optional"):
            assert tensor.optional == row.get("optional", False), tensor.name
            assert tensor.allow_ragged_batch == row.get("ragged", False), tensor.name
            assert tensor.HasField("reshape") == row.get("scalar", False), tensor.name
            assert list(tensor.reshape.shape) == [], tensor.name


def with_chat(row: dict[str, Any], added: dict[str, Any], on: bool) -> list[dict[str, Any]]:
    """The contract's inputs and those for messages behind them."""
    if not on or not added:
        return list(row["inputs"])
    text = {"optional": True}
    return [t | (text if t["name"] in added["optional"] else {}) for t in row["inputs"]] + added["inputs"]


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "no-chat"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_a_tensorrt_repository_is_nvidia_s_field_by_field(
    engine: Path, tmp_path: Path, decoupled: bool, chat: bool
) -> None:
    options = RepositoryOptions(max_batch_size=8, max_queue_size=64)
    repository = made(engine, tmp_path, options, decoupled=decoupled, chat=chat)
    datatypes = NvidiaModelOptions().datatypes()
    assert {p.name for p in repository.iterdir() if p.is_dir()} == set(CONTRACT["models"])
    for name, row in CONTRACT["models"].items():
        found = written(repository, name)
        added = CHAT["models"].get(name, {})
        assert_tensors(found.input, with_chat(row, added, chat), datatypes)
        assert_tensors(found.output, row["outputs"], datatypes)
        assert found.max_batch_size == 8
        extra = set(CHAT["parameters"].get(name, ())) if chat else set()
        assert set(found.parameters) <= set(row["parameters"]) | extra
        assert {k for k, p in row["parameters"].items() if p.get("required")} <= set(found.parameters)
        steps = [
            (s.model_name, dict(s.input_map), dict(s.output_map)) for s in found.ensemble_scheduling.step
        ]
        maps = added.get("steps", {}) if chat else {}
        wanted = [
            (s["model"], s["inputs"] | maps.get(s["model"], {}), s["outputs"]) for s in row.get("steps", [])
        ]
        assert steps == wanted
    executor = written(repository, "tensorrt_llm")
    assert executor.backend == "tensorrtllm"
    assert executor.model_transaction_policy.decoupled == decoupled
    assert [(g.count, g.kind) for g in executor.instance_group] == [(1, 2)]  # KIND_CPU
    assert list(executor.dynamic_batching.preferred_batch_size) == [8]
    assert executor.dynamic_batching.default_queue_policy.max_queue_size == 64
    assert written(repository, "tensorrt_llm_bls").model_transaction_policy.decoupled == decoupled
    assert written(repository, "tensorrt_llm_bls").instance_group[0].count == 8
    assert written(repository, "tensorrt_llm_bls").parameters["accumulate_tokens"].string_value == "true"


def test_the_counts_are_those_of_the_facts() -> None:
    rows = CONTRACT["models"]
    sizes = {n: (len(r["inputs"]), len(r["outputs"])) for n, r in rows.items()}
    assert sizes["tensorrt_llm"] == (62, 21)
    assert (len(CONTRACT["llmapi"]["inputs"]), len(CONTRACT["llmapi"]["outputs"])) == (17, 16)
    assert len(rows["tensorrt_llm"]["parameters"]) == 47


def test_keys_that_must_be_there_are_there_even_when_empty(engine: Path, tmp_path: Path) -> None:
    parameters = written(made(engine, tmp_path), "tensorrt_llm").parameters
    for key in ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"):
        assert key in parameters
    assert parameters["guided_decoding_backend"].string_value == ""
    assert parameters["gpt_model_type"].string_value == "inflight_fused_batching"
    assert parameters["gpt_model_path"].string_value == str(engine / "engine")


def test_nvidia_s_code_is_linked_from_the_image_and_not_copied(engine: Path, tmp_path: Path) -> None:
    repository = made(engine, tmp_path)
    for model in PYTHON_MODELS:
        name = "model.py" if model == "postprocessing" else "nvidia_model.py"
        link = repository / model / "1" / name
        assert str(link.readlink()) == f"/app/all_models/inflight_batcher_llm/{model}/1/model.py"
    assert list((repository / "tensorrt_llm" / "1").iterdir()) == []
    assert list((repository / "ensemble" / "1").iterdir()) == []


def test_links_into_an_image_s_root_lead_to_files(engine: Path, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    with pytest.raises(RepositoryError, match="the image has no /app/all_models"):
        build_triton_repository(engine, tmp_path / "a", rootfs=rootfs)
    for paths in CONTRACT["image"]["paths"].values():
        for path in paths:
            target = rootfs / "app" / "all_models" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir(exist_ok=True) if path.endswith("lib") else target.write_text("")
    build_triton_repository(engine, tmp_path / "b", rootfs=rootfs)
    for model in PYTHON_MODELS:
        assert (tmp_path / "b" / model / "1" / "model.py").is_file()


def test_every_parameter_of_the_backend_can_be_set(engine: Path, tmp_path: Path) -> None:
    """Whatever the contract lists and enginix does not write itself reaches config.pbtxt."""
    examples = {"bool": "true", "int": "3", "fraction": "0.5", "ints": "1,2", "devices": "0,1;2,3"}
    examples |= {"enum": "", "choices": "{0,0},{0,1}", "path": "/x", "string": ""}
    rows = CONTRACT["models"]["tensorrt_llm"]["parameters"]
    own = {k for k, r in rows.items() if "own" in r or "refused" in r}
    given = {k: r.get("values", [examples[r["type"]]])[0] for k, r in rows.items() if k not in own}
    given |= {"max_beam_width": "2", "decoding_mode": "beam_search"}
    # Of speculative decoding, which has a test of its own.
    for key in ("medusa_choices", "eagle_choices"):
        del given[key]
    found = written(made(engine, tmp_path, parameters=given), "tensorrt_llm").parameters
    assert {k: found[k].string_value for k in given} == given
    assert len(given) > 35


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"kv_cache_free_gpu_memory_fraction": "0.5"},
        "unknown\n  fix: did you mean kv_cache_free_gpu_mem_fraction?",
    ),
    ({"kv_cache_free_gpu_mem_fraction": "90%"}, "'90%' is not a number from 0 to 1"),
    ({"kv_cache_free_gpu_mem_fraction": "nan"}, "'nan' is not a number"),
    ({"kv_cache_free_gpu_mem_fraction": "1.5"}, "'1.5' is not a number from 0 to 1"),
    ({"enable_chunked_context": "yes"}, "'yes' is not true or false"),
    ({"max_tokens_in_paged_kv_cache": "1e6"}, "'1e6' is not a whole number"),
    ({"batch_scheduler_policy": "max_utilisation"}, "did you mean max_utilization?"),
    ({"decoding_mode": "auto"}, "'auto' is not one of its values"),
    (
        {"decoding_mode": "lookahead", "lookahead_ngram_size": 2},
        "lookahead needs lookahead_window_size, lookahead_v",
    ),
    ({"decoding_mode": "beam_search"}, "beam_search over max_beam_width 1"),
    ({"decoding_mode": "top_k", "max_beam_width": 2}, "top_k over max_beam_width 2"),
    ({"max_beam_width": 4}, "max_beam_width: 4 is above the engine's 2"),
    ({"guided_decoding_backend": "xgrammar"}, "belong together"),
    (
        {"guided_decoding_backend": "xgrammar", "xgrammar_tokenizer_info_path": "/none"},
        "'/none' is not there",
    ),
    ({"gpt_model_type": "V1"}, "enginix writes it itself"),
    ({"enable_trt_overlap": "true"}, "not to be set"),
    ({"cross_kv_cache_fraction": "0.5"}, "encoder-decoder models only"),
    ({"lora_prefetch_dir": "${lora_prefetch_dir}"}, "'${lora_prefetch_dir}' is not a path"),
    ({"gpu_device_ids": "0, 1"}, "joined by commas"),
    ({"kv_cache_free_gpu_mem_fraction": "0"}, "leaves no key-value cache"),
    ({"max_attention_window_size": "32,65"}, "max_attention_window_size: 65 is above the engine's 64"),
    ({"decoding_mode": "medusa"}, "medusa, but the engine was built for no speculative decoding"),
    ({"eagle_choices": "{0,0}"}, "only read with decoding_mode eagle"),
]


@pytest.mark.parametrize(("parameters", "expected"), REFUSED, ids=[str(r[0])[:60] for r in REFUSED])
def test_parameters_that_the_backend_would_ignore_or_refuse(
    engine: Path, tmp_path: Path, parameters: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RepositoryError) as caught:
        made(engine, tmp_path, parameters=parameters)
    assert expected in str(caught.value)
    assert list(tmp_path.glob("repository*")) == []


PARAMETERS = st.dictionaries(
    st.text(max_size=20) | st.sampled_from(list(CONTRACT["models"]["tensorrt_llm"]["parameters"])),
    st.text(max_size=12),
)


@given(PARAMETERS)
def test_any_parameters_are_taken_or_refused_by_name(given_: dict[str, str]) -> None:
    try:
        found = check_parameters(given_)
    except EnginixError as e:
        assert "tensorrt_llm" in str(e)
    else:
        assert found == given_


@pytest.mark.parametrize(
    ("mode", "built"),
    [
        ("medusa", "medusa"),
        ("eagle", "eagle"),
        ("redrafter", "explicit_draft_tokens"),
        ("lookahead", "lookahead_decoding"),
    ],
)
def test_speculative_decoding_is_the_engine_s(
    engine: Path, tmp_path: Path, hand_made: Any, mode: str, built: str
) -> None:
    hand_made.rewrite(
        kind="tensorrt", runtime=RUNTIME, options={"plugins": {"speculativeDecodingMode": built}}
    )
    given = {"decoding_mode": mode}
    if mode in ("medusa", "eagle"):
        given[f"{mode}_choices"] = "{0,0},{0,1}"
    if mode == "lookahead":
        given |= {f"lookahead_{part}_size": "3" for part in ("window", "ngram", "verification_set")}
    found = written(made(engine, tmp_path, parameters=given), "tensorrt_llm").parameters
    assert {k: found[k].string_value for k in given} == given
    other = "eagle" if mode == "medusa" else "medusa"
    with pytest.raises(RepositoryError, match=f"{other}, but the engine was built for {built}"):
        build_triton_repository(
            engine, tmp_path / "other", models=NvidiaModelOptions(parameters={"decoding_mode": other})
        )


def test_what_the_engine_was_not_built_with(engine: Path, tmp_path: Path, hand_made: Any) -> None:
    hand_made.rewrite(kind="tensorrt", runtime=RUNTIME, options={"plugins": {}})
    for parameters, expected in (
        ({"lora_cache_max_adapter_size": "8"}, "without the LoRA plug-in"),
        ({"gpu_weights_percent": "0.5"}, "without weight streaming"),
    ):
        with pytest.raises(RepositoryError, match=expected):
            made(engine, tmp_path, parameters=parameters)


def test_limits_above_the_engine_s(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="max_batch_size: 32 is above the engine's 16"):
        made(engine, tmp_path, RepositoryOptions(max_batch_size=32))


def test_reuse_needs_paged_context(engine: Path, tmp_path: Path, hand_made: Any) -> None:
    hand_made.rewrite(
        kind="tensorrt", runtime=RUNTIME, options={"plugins": {"usePagedContextFmha": "disable"}}
    )
    with pytest.raises(RepositoryError, match="enable_chunked_context: the engine was built without paged"):
        made(engine, tmp_path, parameters={"enable_chunked_context": True})
    parameters = written(made(engine, tmp_path), "tensorrt_llm").parameters
    assert parameters["enable_kv_cache_reuse"].string_value == "false"


@pytest.mark.parametrize(
    ("tokens", "paged", "given", "expected"),
    [
        (64, True, {}, "true"),
        (99, True, {}, None),
        (64, True, {"enable_chunked_context": False}, "false"),
        (64, False, {}, None),
    ],
)
def test_prompts_above_a_steps_tokens_are_taken_in_chunks(
    engine: Path, tmp_path: Path, hand_made: Any, tokens: int, paged: bool, given: Any, expected: str | None
) -> None:
    """Without it TensorRT-LLM refuses a prompt of more than max_num_tokens."""
    limits = {
        "maxBatchSize": 8,
        "maxBeamWidth": 1,
        "maxSeqLen": 100,
        "maxInputLen": 99,
        "maxNumTokens": tokens,
    }
    options = {"limits": limits, "plugins": {"usePagedContextFmha": paged}}
    hand_made.rewrite(kind="tensorrt", runtime=RUNTIME, options=options)
    parameters = written(made(engine, tmp_path, parameters=given), "tensorrt_llm").parameters
    found = (
        parameters["enable_chunked_context"].string_value if "enable_chunked_context" in parameters else None
    )
    assert found == expected


@pytest.mark.parametrize(
    ("config", "map_", "refused"),
    [
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, None, True),
        ({"eos_token": None}, {"pad_token": "x"}, True),
        ({"eos_token": {"content": "x"}}, None, False),
        ({}, {"eos_token": "x"}, False),
        ({"tokenizer_class": "LlamaTokenizer"}, None, False),
        (None, None, False),
    ],
)
def test_a_tokenizer_without_an_end_token(
    engine: Path, tmp_path: Path, config: Any, map_: Any, refused: bool
) -> None:
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", map_)):
        if content is not None:
            (engine / "tokenizer" / name).write_text(json.dumps(content))
    manifest.read_manifest(engine).write(engine)
    if not refused:
        assert made(engine, tmp_path).is_dir()
        return
    with pytest.raises(RepositoryError, match="no eos_token"):
        made(engine, tmp_path)


def test_data_types_that_the_templates_leave_open(engine: Path, tmp_path: Path) -> None:
    repository = made(engine, tmp_path, logits_datatype="FP16")
    assert_tensors(
        written(repository, "ensemble").output,
        CONTRACT["models"]["ensemble"]["outputs"],
        NvidiaModelOptions(logits_datatype="FP16").datatypes(),
    )
    with pytest.raises(RepositoryError, match="unknown data type 'BF16'"):
        build_triton_repository(engine, tmp_path / "other", models=NvidiaModelOptions(logits_datatype="BF16"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("model", "old", "new", "expected"),
    [
        (
            "tensorrt_llm",
            'key: "tokenizer_dir"',
            'key: "kv_cache_host_memory_bytes"',
            "tokenizer_dir: missing",
        ),
        ("tensorrt_llm", 'name: "runtime_top_p"', 'name: "top_p"', "input top_p: unknown"),
        (
            "ensemble",
            'key: "seed"',
            'key: "random_seed"',
            "no input random_seed\n  fix: it is seed in this version",
        ),
        ("ensemble", 'key: "min_tokens"', 'key: "min_length"', "it is min_tokens in this version"),
    ],
)
def test_mistakes_of_earlier_generators_are_named(
    engine: Path, tmp_path: Path, model: str, old: str, new: str, expected: str
) -> None:
    repository = made(engine, tmp_path)
    edit(repository / model / "config.pbtxt", old, new)
    with pytest.raises(RepositoryError) as caught:
        validate_repository(
            repository, known=contract.build_tensorrt_contract(NvidiaModelOptions().datatypes())
        )
    assert expected in str(caught.value)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "no-chat"])
def test_an_llmapi_repository_is_nvidia_s_and_both_files_agree(
    llmapi: Path, tmp_path: Path, decoupled: bool, chat: bool
) -> None:
    repository = made(llmapi, tmp_path, decoupled=decoupled, chat=chat)
    assert [p.name for p in repository.iterdir() if p.is_dir()] == ["tensorrt_llm"]
    found = written(repository, "tensorrt_llm")
    assert_tensors(found.input, with_chat(CONTRACT["llmapi"], CHAT["llmapi"], chat), {})
    link = repository / "tensorrt_llm" / "1" / ("nvidia_model.py" if chat else "model.py")
    assert str(link.readlink()) == "/app/all_models/llmapi/tensorrt_llm/1/model.py"
    assert_tensors(found.output, CONTRACT["llmapi"]["outputs"], {})
    described = json.loads((repository / "tensorrt_llm" / "1" / "model.yaml").read_text())
    assert described["triton_config"] == {
        "max_batch_size": 0,
        "decoupled": decoupled,
        "cancellation_check_period_ms": 100,
    }
    assert (found.max_batch_size, found.model_transaction_policy.decoupled) == (0, decoupled)
    assert described["model"] == str(llmapi / "model")
    assert described["tensor_parallel_size"] == 2
    assert described["trust_remote_code"] is False
    assert manifest.read_manifest(repository, "triton-repository").kind == "llmapi"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda d: d["triton_config"].update(decoupled=False),
            "triton_config.decoupled: false, but config.pbtxt",
        ),
        (lambda d: d["triton_config"].update(max_batch_size=4), "triton_config.max_batch_size: 4, but"),
        (
            lambda d: d["triton_config"].update(decoupled="true"),
            'decoupled: "true", but config.pbtxt says true',
        ),
        (lambda d: d["triton_config"].pop("decoupled"), "triton_config lacks max_batch_size or decoupled"),
        (lambda d: d.pop("triton_config"), "triton_config lacks"),
    ],
)
def test_a_model_yaml_that_disagrees(
    llmapi: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    repository = made(llmapi, tmp_path)
    path = repository / "tensorrt_llm" / "1" / "model.yaml"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    with pytest.raises(RepositoryError) as caught:
        validate_repository(repository, known=contract.load_llmapi_contract())
    assert expected in str(caught.value)


def test_options_of_another_kind_are_refused(llmapi: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="supports decoupled and chat only"):
        made(llmapi, tmp_path, RepositoryOptions(max_batch_size=4))
    with pytest.raises(UsageError, match="supports decoupled and chat only"):
        made(llmapi, tmp_path, parameters={"max_beam_width": 1})


def test_options_of_the_reference_kind_are_refused(engine: Path, tmp_path: Path) -> None:
    for options, flag in (
        (RepositoryOptions(device="cuda"), "--device"),
        (RepositoryOptions(max_tokens_limit=8), "--max-tokens-limit"),
        (RepositoryOptions(ensemble_instances=2), "--ensemble-instances"),
    ):
        with pytest.raises(UsageError, match=f"{flag}: not supported by the kind tensorrt"):
            made(engine, tmp_path, options)
        assert list(tmp_path.glob("repository*")) == []


def test_the_command_refuses_options_of_the_reference_kind(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["triton-repo", str(engine), "-o", str(tmp_path / "out"), "--ensemble-instances", "2"]
    assert main(words) == 2
    assert "--ensemble-instances: not supported by the kind tensorrt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_instances_of_each_model_are_those_asked_for(engine: Path, tmp_path: Path) -> None:
    options = RepositoryOptions(
        preprocessing_instances=2, postprocessing_instances=3, max_queue_delay_microseconds=7
    )
    repository = made(engine, tmp_path, options)
    assert written(repository, "preprocessing").instance_group[0].count == 2
    assert written(repository, "postprocessing").instance_group[0].count == 3
    assert written(repository, "preprocessing").dynamic_batching.max_queue_delay_microseconds == 7


def test_the_command_builds_the_kind(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["triton-repo", str(engine), "-o", str(tmp_path / "out"), "--json"]
    assert main([*words, "--parameter", "kv_cache_free_gpu_mem_fraction=0.8"]) == 0
    found = json.loads(capsys.readouterr().out)["options"]
    assert found["parameters"] == {"kv_cache_free_gpu_mem_fraction": "0.8"}
    assert main([*words[:3], str(tmp_path / "b"), "--parameter", "kv_cache_free_gpu_fraction=1"]) != 0
    assert "did you mean" in capsys.readouterr().err
