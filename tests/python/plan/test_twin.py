"""The plan of evaluation (nix/check/plan.nix) and enginix.memory_plan give the same figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from enginix.cli import main
from enginix.kinds.planning.lock_plan import count_weight_bytes, plan_from_lock
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.machine.gpu_table import TargetGpu, find_gpu
from enginix.tables import load_table
from nix_evaluation import check, needs_nix

ROOT = Path(__file__).parents[3]

# Sizes like those of real models; the arithmetic does not care whose they are.
MODELS: dict[str, dict[str, Any]] = {
    "0.6B tied": {
        "layers": 28, "heads": 16, "kvHeads": 8, "headSize": 128, "hiddenSize": 1024,
        "intermediateSize": 3072, "vocabulary": 151936, "context": 40960,
        "dtype": "bfloat16", "tiedEmbeddings": True,
        "quantization": None, "kvCacheQuantization": None, "weightBytes": 1503300328,
        "architecture": "Qwen3ForCausalLM", "attentionWindow": [],
    },
    "7B": {
        "layers": 28, "heads": 28, "kvHeads": 4, "headSize": 128, "hiddenSize": 3584,
        "intermediateSize": 18944, "vocabulary": 152064, "context": 32768,
        "dtype": "bfloat16", "tiedEmbeddings": False,
        "quantization": None, "kvCacheQuantization": None, "weightBytes": 15231271888,
        "architecture": "MistralForCausalLM", "attentionWindow": [4096],
    },
    "32B NVFP4, FP8 KV": {
        "layers": 64, "heads": 64, "kvHeads": 8, "headSize": 128, "hiddenSize": 5120,
        "intermediateSize": 25600, "vocabulary": 151936, "context": 40960,
        "dtype": "bfloat16", "tiedEmbeddings": False,
        "quantization": "NVFP4", "kvCacheQuantization": "FP8", "weightBytes": 20_700_000_001,
    },
    "70B FP8": {
        "layers": 80, "heads": 64, "kvHeads": 8, "headSize": 128, "hiddenSize": 8192,
        "intermediateSize": 28672, "vocabulary": 128256, "context": 131072,
        "dtype": "bfloat16", "tiedEmbeddings": False,
        "quantization": "FP8", "kvCacheQuantization": None, "weightBytes": 72_000_000_007,
        "architecture": "LlamaForCausalLM",  # of an older lock: no windows
    },
    "odd, float32": {
        "layers": 5, "heads": 6, "kvHeads": 3, "headSize": 20, "hiddenSize": 120,
        "intermediateSize": 330, "vocabulary": 1001, "context": 333,
        "dtype": "float32", "tiedEmbeddings": False,
        "quantization": None, "kvCacheQuantization": None, "weightBytes": 3_333_333,
    },
    "awq by another": {
        "layers": 32, "heads": 32, "kvHeads": 8, "headSize": 128, "hiddenSize": 4096,
        "intermediateSize": 14336, "vocabulary": 32768, "context": 32768,
        "dtype": "float16", "tiedEmbeddings": False,
        "quantization": "AWQ", "kvCacheQuantization": "INT8", "weightBytes": 4_150_000_000,
    },
}  # fmt: skip
MEMORIES = (2_500_000, 20_000_000, 2 * 10**9, 16 * 10**9, 24 * 10**9, 80 * 10**9, 96 * 10**9)
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"maxBatchSize": 8, "maxSeqLen": 16384, "maxInputLen": 8192},
    {"maxBatchSize": 2048, "maxNumTokens": 65536, "tensorParallel": 2},
    {"sequences": 33, "maxBatchSize": 64, "maxNumTokens": 2048},
    {"pipelineParallel": 3, "maxSeqLen": 100, "sequences": 2, "maxBatchSize": 2048},
)
SMS = (80, 90, 100, 120)
KEYS = {
    "maxBatchSize": "max_batch_size",
    "maxNumTokens": "max_num_tokens",
    "maxSeqLen": "max_seq_len",
    "sequences": "sequences",
    "tensorParallel": "tensor_parallel",
    "pipelineParallel": "pipeline_parallel",
}
CASES = [
    {"model": model, "memory": memory, "sm": sm, "limits": limits}
    for model in MODELS
    for memory in MEMORIES
    for sm in SMS
    for limits in ASKED
]


def python_plan(case: dict[str, Any]) -> dict[str, Any]:
    facts = dict(MODELS[case["model"]])
    files = {"model.safetensors": facts.pop("weightBytes"), "config.json": 700}
    asked = PlanRequest(**{KEYS[k]: v for k, v in case["limits"].items() if k in KEYS})
    found = plan_from_lock(facts, files, TargetGpu("g", case["sm"], case["memory"]), asked, "case")
    return {
        **asdict(found.memory),
        "fits": found.memory.fits,
        "tightest": found.memory.tightest,
        "certainty": {k: v for k, v in asdict(found.certainty).items() if k != "build"},
    }


def camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k.split("_")[0] + "".join(w.capitalize() for w in k.split("_")[1:]): camel(v)
            for k, v in value.items()
        }
    return [camel(v) for v in value] if isinstance(value, list) else value


@needs_nix
def test_evaluation_and_command_agree_on_a_table_of_cases(tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(json.dumps({"models": MODELS, "cases": CASES}))
    theirs = check(
        f"""let
          table = builtins.fromJSON (builtins.readFile {tmp_path}/cases.json);
                  plan = c: check.plan.plan table.models.${{c.model}} {{ inherit (c) sm memory; }} c.limits;
        in map plan table.cases"""
    )
    ours = [camel(python_plan(case)) for case in CASES]
    assert [c for c, a, b in zip(CASES, ours, theirs, strict=True) if a != b] == []
    # The table is worth something: both verdicts, every limit.
    assert {o["fits"] for o in ours} == {True, False}
    assert {o["tightest"] for o in ours} == {"weights", "workspace", "kvCache"}


# Of kind edgellm: the wheel's defaults, a server, long caches, and prompts as long as the cache.
EDGELLM: tuple[dict[str, int], ...] = (
    {"maxInputLen": 4096, "maxBatchSize": 1, "maxKvCacheCapacity": 8192},
    {"maxInputLen": 2048, "maxBatchSize": 16, "maxKvCacheCapacity": 4096},
    {"maxInputLen": 8192, "maxBatchSize": 5, "maxKvCacheCapacity": 131000},
    {"maxInputLen": 3000, "maxBatchSize": 64, "maxKvCacheCapacity": 3000},
    {"maxInputLen": 100, "maxBatchSize": 3, "maxKvCacheCapacity": 129},
)


@needs_nix
def test_evaluation_and_command_agree_on_edgellm(tmp_path: Path) -> None:
    grid = list(product(MODELS, (*MEMORIES, 60_000_000, 18 * 10**9), (80, 90, 100), EDGELLM))
    cases = [{"model": m, "memory": memory, "sm": sm, "limits": limits} for m, memory, sm, limits in grid]
    (tmp_path / "cases.json").write_text(json.dumps({"models": MODELS, "cases": cases}))
    theirs = check(
        f"""let
          table = builtins.fromJSON (builtins.readFile {tmp_path}/cases.json);
          plan = c: check.edgellmPlan.plan table.models.${{c.model}} {{ inherit (c) sm memory; }} c.limits;
        in map plan table.cases"""
    )
    ours = []
    for model, memory, sm, limits in grid:
        facts = dict(MODELS[model])
        files = {"model.safetensors": facts.pop("weightBytes")}
        asked = PlanRequest(
            kind="edgellm",
            max_batch_size=limits["maxBatchSize"],
            max_input_len=limits["maxInputLen"],
            max_seq_len=limits["maxKvCacheCapacity"],
        )
        found = plan_from_lock(facts, files, TargetGpu("g", sm, memory), asked, "case")
        ours.append(
            camel(
                {
                    **asdict(found.memory),
                    "fits": found.memory.fits,
                    "tightest": found.memory.tightest,
                }
            )
        )
    assert [c for c, a, b in zip(cases, ours, theirs, strict=True) if a != b] == []
    assert {o["fits"] for o in ours} == {True, False}
    assert {o["tightest"] for o in ours if not o["fits"]} == {"weights", "workspace", "kvCache"}


@needs_nix
def test_every_gpu_has_the_same_memory_in_both() -> None:
    gpus = load_table("gpus")["gpus"]
    theirs = check(
        f"builtins.mapAttrs (_: check.plan.memoryOf) "
        f"(builtins.fromJSON (builtins.readFile {ROOT}/python/enginix/data/machine/gpus.json)).gpus"
    )
    assert theirs == {name: find_gpu(name).memory or None for name in gpus}


@needs_nix
@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": 5, "config.json": 3},
        {"model-00001-of-00002.safetensors": 5, "model-00002.safetensors": 6, "consolidated.safetensors": 9},
        {"consolidated.safetensors": 9, "original/model.safetensors": 1},
        {"a/b.safetensors": 3},
        {"model.safetensors.index.json": 4, "weights.safetensors": 7},
    ],
)  # fmt: skip
def test_the_same_files_are_weights_in_both(files: dict[str, int]) -> None:
    sized = json.dumps({p: {"size": n} for p, n in files.items()})
    theirs = check(f"check.plan.weightBytes (builtins.fromJSON ''{sized}'')")
    assert theirs == count_weight_bytes(files)


@needs_nix
def test_unknown_facts_are_no_refusal() -> None:
    told = f"builtins.fromJSON ''{json.dumps(MODELS['7B'])}''"
    gpu = 'name = "g"; sm = 90; memoryGB'
    assert (
        check(f'check.plan.fits "f" "tensorrt" (removeAttrs ({told}) [ "layers" ]) {{ {gpu} = 1; }} {{ }}')
        is None
    )


@needs_nix
@pytest.mark.parametrize("call", ['plan.fits "mkEngine" "tensorrt"', 'edgellmPlan.fits "mkEngine"'])
def test_a_gpu_of_unknown_memory_is_asked_for_it(call: str) -> None:
    told = f"builtins.fromJSON ''{json.dumps(MODELS['7B'])}''"
    limits = "{ maxInputLen = 512; maxBatchSize = 1; maxKvCacheCapacity = 1024; }"
    for gpu, way in (("a16", 'gpu = "a16"; memoryGB'), ("sm86", "sm = 86; memoryGB")):
        found = f'(check.gpus.find "f" "{gpu}")'
        with pytest.raises(AssertionError) as refused:
            check(f"check.{call} ({told}) {found} {limits}")
        assert f'the memory of target "{gpu}" is not known' in str(refused.value)
        assert way in str(refused.value)
    named = '(check.gpus.find "f" (check.engine.target "f" { gpu = "a16"; memoryGB = 64; }).gpu)'
    assert check(f"check.{call} ({told}) {named} {limits}")["fits"] is True


QWEN = ROOT / "nix" / "catalogue" / "qwen2_5-7b-instruct.lock.json"


@needs_nix
@pytest.mark.parametrize(
    ("call", "gpu", "limits", "reason", "change"),
    [
        (
            'plan.fits "mkEngine" "tensorrt"',
            '(check.gpus.find "f" (check.engine.target "f" { gpu = "rtx-4090"; memoryGB = 16; }).gpu)',
            "{ maxBatchSize = 8; maxSeqLen = null; }",
            "it does not fit rtx-4090-16gb (14.9 GiB): weights (14.1 GiB) and workspace",
            "--tensor-parallel 2",
        ),
        (
            'plan.fits "mkEngine" "llmapi"',
            '(check.gpus.find "f" "h200")',
            "{ maxSeqLen = 32768; sequences = 100; tensorParallel = 1; }",
            "and 3276800 are asked for",
            "an FP8 KV cache (--kv-cache FP8)",
        ),
        (
            'edgellmPlan.fits "mkEngine"',
            '(check.gpus.find "f" "rtx-3090")',
            "{ maxInputLen = 512; maxBatchSize = 16; maxKvCacheCapacity = 32768; }",
            "16 sequences of maxKvCacheCapacity take 524288, from the start",
            "--max-batch-size 4",
        ),
        (
            'rtxPlan.fits "mkEngine"',
            '(check.gpus.find "f" "rtx-3090")',
            "{ maxBatchSize = 32; maxSeqLen = 8192; stepTokens = 32; }",
            "32 slots take 263136, from the start",
            "--max-batch-size 16",
        ),
    ],
)
def test_a_refusal_names_the_tightest_limit_and_the_command_that_finds_the_way_out(
    call: str, gpu: str, limits: str, reason: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = f"(builtins.fromJSON (builtins.readFile {QWEN}))"
    facts = f"({lock}.model // {{ weightBytes = check.plan.weightBytes {lock}.files; }})"
    with pytest.raises(AssertionError) as refused:
        check(f"check.{call} {facts} {gpu} {limits}")
    text = str(refused.value)
    assert "mkEngine: it does not fit" in text and reason in text
    command = text[text.index("enginix plan MODEL") :].splitlines()[0].replace("MODEL", str(QWEN)).split()
    assert main([*command[1:], "--offline"]) == 1
    assert f"smallest change  {change}" in capsys.readouterr().out


@needs_nix
def test_a_cache_of_windowed_layers_is_refused_as_an_upper_bound() -> None:
    facts = f"builtins.fromJSON ''{json.dumps(MODELS['7B'])}''"
    gpu = '{ name = "g"; sm = 89; memoryGB = 17; }'
    with pytest.raises(AssertionError, match="an upper bound: layers with a window are counted in full"):
        check(f'check.plan.fits "f" "tensorrt" ({facts}) {gpu} {{ maxBatchSize = 1; maxNumTokens = 512; }}')


# Of kind rtx: the defaults, one slot, many, and sequences longer than some of the contexts.
RTX: tuple[dict[str, int], ...] = (
    {},
    {"max_batch_size": 1, "max_seq_len": 512},
    {"max_batch_size": 64},
    {"max_batch_size": 7, "max_seq_len": 2048},
)


@needs_nix
def test_evaluation_and_command_agree_on_rtx(tmp_path: Path) -> None:
    grid = list(product(MODELS, (*MEMORIES, 60_000_000, 18 * 10**9), (80, 86, 89, 120), RTX))
    cases, ours = [], []
    for model, memory, sm, limits in grid:
        facts = dict(MODELS[model])
        files = {"model.safetensors": facts.pop("weightBytes")}
        # More than the context is refused.
        within = {key: min(n, facts["context"]) if "seq" in key else n for key, n in limits.items()}
        request = PlanRequest(kind="rtx", **within)
        found = plan_from_lock(facts, files, TargetGpu("g", sm, memory), request, "case")
        sizes = {key: value for key, value in asdict(found.limits).items() if value is not None}
        cases.append({"model": model, "memory": memory, "sm": sm, "limits": camel(sizes)})
        verdict = {"fits": found.memory.fits, "tightest": found.memory.tightest}
        ours.append(camel({**asdict(found.memory), **verdict}))
    (tmp_path / "cases.json").write_text(json.dumps({"models": MODELS, "cases": cases}))
    theirs = check(
        f"""let
          table = builtins.fromJSON (builtins.readFile {tmp_path}/cases.json);
          plan = c: check.rtxPlan.plan table.models.${{c.model}} {{ inherit (c) sm memory; }} c.limits;
        in map plan table.cases"""
    )
    assert [c for c, a, b in zip(cases, ours, theirs, strict=True) if a != b] == []
    assert {o["fits"] for o in ours} == {True, False}
    assert {o["tightest"] for o in ours if not o["fits"]} == {"weights", "workspace", "kvCache"}
