"""The plan of evaluation (nix/check/plan.nix) and enginix.memory_plan give the same figures and changes."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from plan_support import NIX, check

from enginix.kinds.planning.lock_plan import count_weight_bytes, plan_from_lock
from enginix.kinds.planning.planner import PlanRequest
from enginix.kinds.registry import find_kind
from enginix.machine.gpu_table import find_gpu
from enginix.memory_plan.arithmetic import TargetGpu
from enginix.tables import load_table

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
        "changes": [dict(c) for c in found.changes],
    }


def camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k.split("_")[0] + "".join(w.capitalize() for w in k.split("_")[1:]): camel(v)
            for k, v in value.items()
        }
    return [camel(v) for v in value] if isinstance(value, list) else value


@pytest.mark.skipif(NIX is None, reason="no Nix")
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
    # The table is worth something: both verdicts, every limit, every kind of change, and no way out.
    assert {o["fits"] for o in ours} == {True, False}
    assert {o["tightest"] for o in ours} == {"weights", "workspace", "kvCache"}
    kinds = {frozenset(o["changes"][0]) for o in ours if o["changes"]}
    for name in ("maxNumTokens", "maxBatchSize", "kvBits", "sequences", "maxSeqLen", "tensorParallel"):
        assert frozenset({name}) in kinds, name
    assert any("quantization" in c for o in ours for c in o["changes"])
    assert any(len(kind) > 1 for kind in kinds)
    assert any(not o["fits"] and not o["changes"] for o in ours)


# Of kind edgellm: the wheel's defaults, a server, long caches, and prompts as long as the cache.
EDGELLM: tuple[dict[str, int], ...] = (
    {"maxInputLen": 4096, "maxBatchSize": 1, "maxKvCacheCapacity": 8192},
    {"maxInputLen": 2048, "maxBatchSize": 16, "maxKvCacheCapacity": 4096},
    {"maxInputLen": 8192, "maxBatchSize": 5, "maxKvCacheCapacity": 131000},
    {"maxInputLen": 3000, "maxBatchSize": 64, "maxKvCacheCapacity": 3000},
    {"maxInputLen": 100, "maxBatchSize": 3, "maxKvCacheCapacity": 129},
)


@pytest.mark.skipif(NIX is None, reason="no Nix")
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
                    "changes": [dict(c) for c in found.changes],
                }
            )
        )
    assert [c for c, a, b in zip(cases, ours, theirs, strict=True) if a != b] == []
    assert {o["fits"] for o in ours} == {True, False}
    assert {o["tightest"] for o in ours if not o["fits"]} == {"weights", "workspace", "kvCache"}
    kinds = {frozenset(c) for o in ours for c in o["changes"]}
    for name in ("maxInputLen", "maxBatchSize", "kvBits", "maxKvCacheCapacity", "quantization"):
        assert any(name in kind for kind in kinds), (name, kinds)
    assert any(not o["fits"] and not o["changes"] for o in ours)


@pytest.mark.skipif(NIX is None, reason="no Nix")
def test_edgellm_refusal_names_the_tightest_limit_and_the_smallest_change() -> None:
    told = f"builtins.fromJSON ''{json.dumps(MODELS['7B'])}''"
    gpu = '{ name = "rtx-3090"; sm = 86; memoryGB = 24; }'
    limits = "{ maxInputLen = 512; maxBatchSize = 16; maxKvCacheCapacity = 32768; }"
    with pytest.raises(AssertionError) as refused:
        check(f'check.edgellmPlan.fits "mkEngine" ({told}) {gpu} {limits}')
    text = str(refused.value)
    assert "mkEngine: it does not fit rtx-3090 (22.3 GiB)" in text
    assert "16 sequences of maxKvCacheCapacity take 524288, from the start" in text
    assert "Smallest change that fits: limits.maxBatchSize = 4." in text
    assert check(f'check.edgellmPlan.fits "f" (removeAttrs ({told}) [ "layers" ]) {gpu} {limits}') is None


@pytest.mark.skipif(NIX is None, reason="no Nix")
def test_every_gpu_has_the_same_memory_in_both() -> None:
    gpus = load_table("gpus")["gpus"]
    theirs = check(
        f"builtins.mapAttrs (_: check.plan.memoryOf) "
        f"(builtins.fromJSON (builtins.readFile {ROOT}/python/enginix/data/machine/gpus.json)).gpus"
    )
    assert theirs == {name: find_gpu(name).memory or None for name in gpus}


@pytest.mark.skipif(NIX is None, reason="no Nix")
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


@pytest.mark.skipif(NIX is None, reason="no Nix")
def test_unknown_facts_are_no_refusal() -> None:
    told = f"builtins.fromJSON ''{json.dumps(MODELS['7B'])}''"
    gpu = 'name = "g"; sm = 90; memoryGB'
    assert check(f'check.plan.fits "f" (removeAttrs ({told}) [ "layers" ]) {{ {gpu} = 1; }} {{ }}') is None


@pytest.mark.skipif(NIX is None, reason="no Nix")
@pytest.mark.parametrize("function", ["plan", "edgellmPlan"])
def test_a_gpu_of_unknown_memory_is_asked_for_it(function: str) -> None:
    told = f"builtins.fromJSON ''{json.dumps(MODELS['7B'])}''"
    limits = "{ maxInputLen = 512; maxBatchSize = 1; maxKvCacheCapacity = 1024; }"
    for gpu, way in (("a16", 'gpu = "a16"; memoryGB'), ("sm86", "sm = 86; memoryGB")):
        found = f'(check.gpus.find "f" "{gpu}")'
        with pytest.raises(AssertionError) as refused:
            check(f'check.{function}.fits "mkEngine" ({told}) {found} {limits}')
        assert f'the memory of target "{gpu}" is not known' in str(refused.value)
        assert way in str(refused.value)
    named = '(check.gpus.find "f" (check.engine.target "f" { gpu = "a16"; memoryGB = 64; }).gpu)'
    assert check(f'check.{function}.fits "mkEngine" ({told}) {named} {limits}')["fits"] is True


@pytest.mark.skipif(NIX is None, reason="no Nix")
def test_the_refusal_names_the_tightest_limit_and_the_smallest_change() -> None:
    told = json.dumps(MODELS["7B"])
    with pytest.raises(AssertionError) as refused:
        check(
            f"check.plan.fits \"mkEngine\" (builtins.fromJSON ''{told}'') "
            '{ name = "rtx-4090"; sm = 89; memoryGB = 16; } { maxBatchSize = 8; }'
        )
    text = str(refused.value)
    assert "mkEngine: it does not fit rtx-4090 (14.9 GiB)" in text
    assert "weights (14.1 GiB) and workspace" in text
    assert "Smallest change that fits: tensorParallel = 2 (on 2 GPUs)." in text
    assert "Others: the model quantized to FP8" in text
    assert "enginix plan" in text
    with pytest.raises(AssertionError, match="an upper bound: layers with a window are counted in full"):
        check(
            f"check.plan.fits \"mkEngine\" (builtins.fromJSON ''{told}'') "
            '{ name = "g"; sm = 89; memoryGB = 17; } { maxBatchSize = 1; maxNumTokens = 512; }'
        )


@pytest.mark.skipif(NIX is None, reason="no Nix")
@pytest.mark.parametrize(("kind", "function"), [("llmapi", "computes"), ("tensorrt", "quantization")])
def test_every_format_runs_on_the_same_gpus_in_both(kind: str, function: str) -> None:
    """What evaluation refuses for a GPU is what ``enginix compare`` and ``plan`` leave out."""
    algorithms = load_table("number_formats")["algorithms"]
    theirs = check(
        f"""let
          read = path: builtins.fromJSON (builtins.readFile ({ROOT}/python/enginix/data + path));
          gpus = (read "/machine/gpus.json").gpus;
          algorithms = (read "/models/number_formats.json").algorithms;
          takes = format: name: let
            gpu = gpus.${{name}} // {{ inherit name; }};
            required = check.kindSupport.require "f" "{kind}" gpu null;
          in (builtins.tryEval (builtins.seq required (check.target.{function} "f" format gpu))).success;
          names = builtins.attrNames gpus;
        in builtins.mapAttrs (format: _: builtins.filter (takes format) names) algorithms"""
    )
    ours = {}
    for name in algorithms:
        row = algorithms[name]
        if row["convert"] or kind == "llmapi":
            targets = find_kind(kind).judge_model("Qwen3ForCausalLM", name).targets
        else:  # evaluation refuses these models in mkCheckpoint
            targets, theirs[name] = (), []
        ours[name] = sorted(targets or ())
    assert {name: sorted(gpus) for name, gpus in theirs.items()} == ours


@pytest.mark.skipif(NIX is None, reason="no Nix")
def test_a_format_that_evaluation_refuses_for_llmapi_names_the_way_out() -> None:
    gpu = '{ name = "h200"; sm = 90; formats = [ "BF16" "FP16" "INT8" "INT4" "FP8" ]; }'
    for format_, said in (
        ("W4A8_MXFP4_FP8", 'needs SM 100 or later; target "h200" is SM 90'),
        ("W4A8_MXFP4_FP8", 'or target = "b200".'),
        ("W4A16_NVFP4", "PyTorch backend does not take W4A16_NVFP4"),
    ):
        with pytest.raises(AssertionError) as refused:
            check(f'check.target.computes "mkEngine" "{format_}" ({gpu})')
        assert said in str(refused.value)


# Of kind rtx: the defaults, one slot, many, and sequences longer than some of the contexts.
RTX: tuple[dict[str, int], ...] = (
    {},
    {"max_batch_size": 1, "max_seq_len": 512},
    {"max_batch_size": 64},
    {"max_batch_size": 7, "max_seq_len": 2048},
)


@pytest.mark.skipif(NIX is None, reason="no Nix")
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
        changes = [dict(change) for change in found.changes]
        ours.append(camel({**asdict(found.memory), **verdict, "changes": changes}))
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
    kinds = {frozenset(c) for o in ours for c in o["changes"]}
    for name in ("maxBatchSize", "maxSeqLen", "quantization"):
        assert frozenset({name}) in kinds, (name, kinds)
    assert any(not o["fits"] and not o["changes"] for o in ours)


@pytest.mark.skipif(NIX is None, reason="no Nix")
def test_rtx_refusal_names_the_tightest_limit_and_the_smallest_change() -> None:
    told = f"builtins.fromJSON ''{json.dumps(MODELS['7B'])}''"
    gpu = '{ name = "rtx-3090"; sm = 86; memoryGB = 24; }'
    limits = "{ maxBatchSize = 32; maxSeqLen = 8192; stepTokens = 16; }"
    with pytest.raises(AssertionError) as refused:
        check(f'check.rtxPlan.fits "mkEngine" ({told}) {gpu} {limits}')
    text = str(refused.value)
    assert "mkEngine: it does not fit rtx-3090 (22.3 GiB)" in text
    assert "32 slots take 262624, from the start" in text
    assert "Smallest change that fits: limits.maxBatchSize = 16." in text
    unsized = '{ name = "a16"; sm = 86; memoryGB = null; }'
    assert check(f'check.rtxPlan.fits "f" ({told}) {unsized} {limits}') is None
