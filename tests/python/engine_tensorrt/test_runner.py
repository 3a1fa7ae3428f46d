"""The cache of engines built at first run, and what is served."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from enginix import beside, manifest
from enginix.cli import main
from enginix.errors import ManifestError
from enginix.kinds.llmapi.trtllm_serve import Serving, make_serve_command
from enginix.kinds.tensorrt import runner
from enginix.manifest import Manifest
from enginix.runtime import child


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(path: Path, name: str = "e") -> None:
    path.mkdir(parents=True)
    Manifest("engine", name, "tensorrt", target={"gpu": "G"}).write(path)


def slowly(path: Path) -> None:
    with open(path.parent.parent / "builds", "a") as f:
        f.write("x")
    time.sleep(0.5)
    make(path)


def one(_: int) -> str:
    return str(runner.get_or_build_engine("k", slowly))


def test_concurrent_runs_build_once():
    runner.find_cache_directory().mkdir(parents=True)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert len(set(pool.map(one, range(3)))) == 1
    assert (runner.find_cache_directory().parent / "builds").read_text() == "x"


def test_a_broken_build_leaves_no_engine_and_the_next_run_builds():
    def fails(path: Path) -> None:
        path.mkdir()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        runner.get_or_build_engine("k", fails)
    assert runner.list_cached_engines() == []
    assert manifest.read_manifest(runner.get_or_build_engine("k", make)).name == "e"


def test_list_and_prune(capsys):
    for key in ("a", "b", "c"):
        runner.get_or_build_engine(key, lambda path, key=key: make(path, f"name-{key}"))
        time.sleep(0.02)
    (runner.find_cache_directory() / "stray").mkdir()
    assert main(["cache", "list", "--json"]) == 0
    assert [row["key"] for row in json.loads(capsys.readouterr().out)] == ["c", "b", "a"]
    assert main(["cache", "prune", "name-b"]) == 0 and "name-b" in capsys.readouterr().out
    assert main(["cache", "prune", "--keep", "1"]) == 0
    assert [e.key for e in runner.list_cached_engines()] == ["c"] and (
        runner.find_cache_directory() / "stray"
    ).is_dir()


def test_prune_keeps_what_is_being_built():
    runner.get_or_build_engine("k", make)
    with runner._reserve_entry(runner.find_cache_directory(), "k", wait=True):
        assert runner.prune_engines(0, []) == []
    assert [e.key for e in runner.prune_engines(0, [])] == ["k"]


def test_two_may_prune_at_once(monkeypatch):
    runner.get_or_build_engine("k", make)
    listed = runner.list_cached_engines()
    assert [e.key for e in runner.prune_engines(0, [])] == ["k"]
    monkeypatch.setattr(runner, "list_cached_engines", lambda: listed)
    assert runner.prune_engines(0, []) == []


def test_prune_says_what_it_needs(capsys):
    assert main(["cache", "prune"]) == 2 and main(["cache", "prune", "x", "--keep", "1"]) == 2


def test_the_key_is_of_everything() -> None:
    base = {"gpu": "a", "request": {"limits": {"maxBatchSize": 8}}}
    keys = {
        runner.hash_identity(base),
        runner.hash_identity({**base, "gpu": "b"}),
        runner.hash_identity({**base, "request": {"limits": {"maxBatchSize": 9}}}),
    }
    assert len(keys) == 3 and runner.hash_identity(dict(reversed(list(base.items())))) in keys


def test_serving_an_engine(tmp_path):
    limits = {"maxBatchSize": 8, "maxSeqLen": 100}
    words = make_serve_command(
        tmp_path,
        Manifest("engine", "e", "tensorrt", options={"limits": limits, "tensorParallel": 2}),
        Serving(),
    )
    said = " ".join(words)
    # The default backend refuses engines, and trtllm-build leaves no tokenizer in them.
    assert words[:2] == ["trtllm-serve", f"{tmp_path}/engine"] and "--backend trt " in said
    assert (
        f"--tokenizer {tmp_path}/tokenizer" in said and "--tp_size 2" in said and "--host 127.0.0.1" in said
    )


def test_serving_an_llmapi_artefact(tmp_path):
    (tmp_path / "llm_args.yaml").write_text('{"a": 1}')
    said = " ".join(
        make_serve_command(tmp_path, Manifest("engine", "e", "llmapi"), Serving(kv_cache_fraction=0.5))
    )
    assert (
        f"{tmp_path}/model --backend pytorch" in said and "--extra_llm_api_options" in said and "0.5" in said
    )


LONGER = {"maxBatchSize": 8, "maxSeqLen": 100, "maxInputLen": 99, "maxNumTokens": 64}


def test_prompts_above_a_steps_tokens_are_taken_in_chunks(tmp_path):
    """Without it TensorRT-LLM refuses a prompt of more than max_num_tokens."""
    for limits, chunked in ((LONGER, True), (LONGER | {"maxNumTokens": 99}, False)):
        words = make_serve_command(
            tmp_path, Manifest("engine", "e", "tensorrt", options={"limits": limits}), Serving()
        )
        assert ("--enable_chunked_prefill" in words) == chunked


@pytest.mark.parametrize("more", [(), ("--llm-arg", "enable_chunked_prefill=true")])
def test_an_llmapi_artefact_takes_longer_prompts_in_chunks(model, tmp_path, more):
    line = ["build", "--kind", "llmapi", "--model", str(model), "--runtime", "trtllm-1.2.1"]
    line += ["--max-num-tokens", "64", *more, "-o"]
    assert main([*line, str(tmp_path / "e")]) == 0
    arguments = json.loads((tmp_path / "e/llm_args.yaml").read_text())
    assert arguments["max_input_len"] == 2047 and arguments["enable_chunked_prefill"] is True
    assert main([*line, str(tmp_path / "f"), "--max-input-len", "64"]) == 0
    arguments = json.loads((tmp_path / "f/llm_args.yaml").read_text())
    assert arguments.get("enable_chunked_prefill", False) is bool(more)


def test_an_llmapi_artefact_promises_no_prompt_that_its_runtime_refuses(model, tmp_path, capsys):
    line = ["build", "--kind", "llmapi", "--model", str(model), "--runtime", "trtllm-1.2.1"]
    line += ["--max-num-tokens", "64", "--llm-arg", "enable_chunked_prefill=false", "-o", str(tmp_path / "e")]
    assert main(line) == 2
    assert "maxInputLen 2047 is more than maxNumTokens 64" in capsys.readouterr().err
    assert main([*line, "--max-input-len", "64"]) == 0


@pytest.mark.parametrize("own", [{"enable_block_reuse": False}, {"free_gpu_memory_fraction": 0.5}])
def test_the_fraction_of_a_server_is_merged_into_the_engines_arguments(tmp_path, own):
    """The file wins over flags, and its kv_cache_config replaces the flag's as a whole."""
    arguments = {"max_batch_size": 4, "kv_cache_config": own}
    (tmp_path / "llm_args.yaml").write_text(json.dumps(arguments))
    made = Manifest("engine", "e", "llmapi")
    words = make_serve_command(tmp_path, made, Serving(kv_cache_fraction=0.6, work=tmp_path / "w"))
    read = json.loads(Path(words[words.index("--extra_llm_api_options") + 1]).read_text())
    assert read == {"max_batch_size": 4, "kv_cache_config": own | {"free_gpu_memory_fraction": 0.6}}
    # Without a fraction of the server's, or without an object of the engine's, there is nothing to merge.
    words = make_serve_command(tmp_path, made, Serving())
    assert words[words.index("--extra_llm_api_options") + 1] == str(tmp_path / "llm_args.yaml")


@pytest.mark.parametrize(
    ("windows", "fraction", "told"),
    [
        ([64, 4096], None, {"max_attention_window": [64, 100]}),
        ([64], 0.6, {"max_attention_window": [64], "free_gpu_memory_fraction": 0.6}),
        ([100], 0.6, None),
        (None, None, None),
    ],
)
def test_an_engine_is_told_the_models_windows(tmp_path, windows, fraction, told):
    """Without them the C++ runtime attends to the whole context."""
    made = Manifest("engine", "e", "tensorrt", options={"limits": {"maxSeqLen": 100}})
    made = replace(made, model={} if windows is None else {"attentionWindow": windows})
    words = make_serve_command(tmp_path, made, Serving(kv_cache_fraction=fraction, work=tmp_path / "w"))
    assert ("--extra_llm_api_options" in words) == (told is not None)
    if told is not None:
        read = json.loads(Path(words[words.index("--extra_llm_api_options") + 1]).read_text())
        assert read == {"kv_cache_config": told}


def test_windows_that_are_none_start_no_server(tmp_path):
    made = replace(Manifest("engine", "e", "tensorrt"), model={"attentionWindow": [True]})
    with pytest.raises(ManifestError, match=r"attentionWindow is \[True\]"):
        make_serve_command(tmp_path, made, Serving())


def test_a_merged_file_is_read_inside_the_runtime(model, rootfs, driver, tmp_path, monkeypatch):
    line = ["build", "--kind", "llmapi", "--model", str(model), "--runtime", "trtllm-1.2.1"]
    line += ["--llm-arg", 'kv_cache_config={"enable_block_reuse":false}', "-o", str(tmp_path / "e")]
    assert main(line) == 0
    seen = []

    def look(sandbox, words, _):
        path = words[words.index("--extra_llm_api_options") + 1]
        seen.append(json.loads((sandbox.work / Path(path).relative_to(sandbox.inside)).read_text()))
        return 0

    monkeypatch.setattr(child, "run_in_foreground", look)
    words = ["runner", str(tmp_path / "e"), "--kv-cache-fraction", "0.6", "--rootfs", str(rootfs)]
    assert main([*words, "--driver", str(driver())]) == 0
    assert seen[0]["kv_cache_config"] == {"enable_block_reuse": False, "free_gpu_memory_fraction": 0.6}


@pytest.mark.parametrize(
    "options",
    [
        {"limits": 5},
        {"limits": {"maxBatchSize": "8"}},
        {"limits": {"maxSeqLen": 0}},
        {"limits": {"maxInputLen": "9", "maxNumTokens": 8}},
        {"tensorParallel": None},
        {"pipelineParallel": [2]},
    ],
)
def test_a_manifest_that_lies_starts_no_server(tmp_path, options):
    with pytest.raises(ManifestError, match="build this engine again"):
        make_serve_command(tmp_path, Manifest("engine", "e", "tensorrt", options=options), Serving())


@pytest.mark.parametrize("text", [None, "{", "[1]", "[" * 100000])
def test_arguments_that_are_none_start_no_server(tmp_path, text):
    if text is not None:
        (tmp_path / "llm_args.yaml").write_text(text)
    with pytest.raises(ManifestError, match=r"llm_args\.yaml"):
        make_serve_command(tmp_path, Manifest("engine", "e", "llmapi"), Serving())


def test_a_reference_engine_is_not_for_trtllm_serve(tmp_path):
    with pytest.raises(ManifestError, match="mkTritonServer"):
        make_serve_command(tmp_path, Manifest("engine", "e", "reference"), Serving())


def test_llmapi_artefact(model, tmp_path):
    line = [
        "build",
        "--kind",
        "llmapi",
        "--model",
        str(model),
        "--runtime",
        "trtllm-1.3.0rc26",
        "--target",
        "h200",
    ]
    line += ["--llm-arg", "enable_chunked_prefill=true", "--max-batch-size", "3", "-o", str(tmp_path / "e")]
    assert main(line) == 0
    made = manifest.read_manifest(tmp_path / "e", "engine")
    arguments = json.loads((tmp_path / "e/llm_args.yaml").read_text())
    assert (
        made.kind == "llmapi"
        and arguments["max_batch_size"] == 3
        and arguments["enable_chunked_prefill"] is True
    )
    assert (tmp_path / "e/model/model.safetensors").is_file() and (
        tmp_path / "e/tokenizer/tokenizer.json"
    ).is_file()


def test_the_name_of_a_model_without_a_manifest_is_no_reference_to_the_store(model, tmp_path):
    stored = tmp_path / f"{'0' * 32}-tiny"
    stored.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (stored / name).write_bytes((model / name).read_bytes())
    line = ["build", "--kind", "llmapi", "--model", str(stored), "--runtime", "trtllm-1.2.1"]
    assert main([*line, "-o", str(tmp_path / "e")]) == 0
    assert manifest.read_manifest(tmp_path / "e").name == "tiny"


def test_llmapi_refuses_engine_options(model, tmp_path, capsys):
    line = [
        "build",
        "--kind",
        "llmapi",
        "--model",
        str(model),
        "--runtime",
        "trtllm-1.2.1",
        "-o",
        str(tmp_path / "e"),
    ]
    assert main([*line, "--plugin", "gemm-plugin=auto"]) == 2 and "do not apply" in capsys.readouterr().err
    assert main([*line, "--llm-arg", "max_batch=3"]) == 2 and not (tmp_path / "e").exists()


def test_llmapi_refuses_a_profile_that_is_none(model, tmp_path, capsys):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"runtime": "trtllm-1.2.1", "profile": "throughputs"}))
    line = ["build", "--kind", "llmapi", "--model", str(model), "--request", str(request)]
    assert main([*line, "-o", str(tmp_path / "e")]) == 2 and not (tmp_path / "e").exists()
    assert "unknown profile" in capsys.readouterr().err


@pytest.mark.parametrize(("ranks", "single"), [(1, "1"), (2, "0")])
def test_ranks_of_an_engine_without_a_target_have_workers_of_their_own(
    model, tmp_path, monkeypatch, ranks, single
):
    line = ["build", "--kind", "llmapi", "--model", str(model), "--runtime", "trtllm-1.2.1"]
    assert main([*line, "--tensor-parallel", str(ranks), "-o", str(tmp_path / "e")]) == 0
    seen = []
    monkeypatch.setattr(
        child, "run_in_foreground", lambda sandbox, words, _: seen.append(sandbox.environment()) or 0
    )
    assert main(["runner", str(tmp_path / "e")]) == 0
    assert [e["TLLM_WORKER_USE_SINGLE_PROCESS"] for e in seen] == [single]


def test_the_runner_watches_an_engine_until_its_server_answers(model, tmp_path, monkeypatch):
    line = ["build", "--kind", "llmapi", "--model", str(model), "--runtime", "trtllm-1.2.1"]
    assert main([*line, "-o", str(tmp_path / "e")]) == 0
    seen = []

    def look(watch, *address):
        seen.extend(address)
        (tmp_path / "e" / "tokenizer" / "tokenizer.json").write_text("{}")
        with pytest.raises(ManifestError, match="changed while it was read"):
            watch.require_unchanged()

    monkeypatch.setattr(beside, "end_if_files_change", look)
    monkeypatch.setattr(child, "run_in_foreground", lambda sandbox, words, started: started() or 0)
    assert main(["runner", str(tmp_path / "e"), "--port", "8123"]) == 0
    assert seen == ["127.0.0.1", 8123]


def test_runner_says_what_it_needs(capsys):
    assert main(["runner"]) == 2 and "pass ENGINE" in capsys.readouterr().err
    assert main(["runner", "/nonexistent", "--port", "70000"]) == 2 and "--port" in capsys.readouterr().err
