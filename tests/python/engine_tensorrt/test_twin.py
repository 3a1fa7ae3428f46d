"""Evaluation (nix/check) and the command line refuse and write the same: one table, two readers."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from enginix.engine import llmapi, options
from enginix.engine.options_rules import Facts, resolve
from enginix.engine.preflight import check_support
from enginix.engine.target import target
from enginix.errors import UsageError
from enginix.tables import table

ROOT = Path(__file__).parents[3]
NIX = shutil.which("nix-instantiate")
pytestmark = pytest.mark.skipif(NIX is None, reason="Nix is not installed")


def evaluate(expression: str, data: Any, tmp_path: Path) -> Any:
    """A Nix expression over `check` and `data`; `accepts e`: e evaluates; `value e`: its value or null."""
    (tmp_path / "data.json").write_text(json.dumps(data))
    whole = f"""
      let
        lib = import {ROOT}/tests/hostpkgs/lib.nix;
        check = import {ROOT}/nix/check {{ inherit lib; }};
        gpus = (lib.importJSON {ROOT}/python/enginix/data/gpus.json).gpus;
        data = lib.importJSON {tmp_path}/data.json;
        try = e: builtins.tryEval (builtins.deepSeq e e);
        accepts = e: (try e).success;
        value = e: let t = try e; in if t.success then t.value else null;
      in {expression}"""
    line = [str(NIX), "--eval", "--strict", "--json", "-E", whole]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def said(call: Any) -> Any:
    try:
        return call()
    except UsageError:
        return None


def test_support(tmp_path: Path) -> None:
    algorithms = [None, *table("quantization_support")["algorithms"], "FP9"]
    caches = [None, "FP8", "INT8", "NVFP4"]
    architectures = ["Qwen3ForCausalLM", "GptOssForCausalLM"]
    cells = list(itertools.product(algorithms, caches, architectures, sorted(table("gpus")["gpus"])))
    nix = evaluate(
        """map (c: let
          gpu = gpus.${builtins.elemAt c 3} // { name = builtins.elemAt c 3; };
        in accepts [
          (check.target.quantization "e" (builtins.elemAt c 0) gpu)
          (check.target.kvCache "e" (builtins.elemAt c 1) gpu)
          (check.target.architecture "e" (builtins.elemAt c 2))
        ]) data""",
        cells,
        tmp_path,
    )
    mine = [said(lambda c=c: check_support(c[0], c[1], c[2], target(c[3]))) is not None for c in cells]
    assert nix == mine and True in mine and False in mine


def test_limits(tmp_path: Path) -> None:
    cases = [
        {"context": context, "given": {k: v for k, v in zip(names, values, strict=True) if v is not None}}
        for names in [("maxBatchSize", "maxSeqLen", "maxInputLen", "maxNumTokens")]
        for context in (None, 2048)
        for values in itertools.product((None, 1, 64), (None, 16, 4096), (None, 1, 32), (None, 8, 512))
    ]
    nix = evaluate('map (c: value (check.limits.resolve "e" c { } c.given)) data', cases, tmp_path)
    mine = [said(lambda c=c: vars(options.defaults(c["context"], c["given"]))) for c in cases]
    assert nix == mine and None in mine and any(mine)


MODELS = [
    Facts("FP8", "FP8", 90, "MixtralForCausalLM", 2),
    Facts("FP8", None, 100, "LlamaForCausalLM", 1),
    Facts("NVFP4", "FP8", 120, "Qwen3ForCausalLM", 4),
    Facts(None, None, 80, "LlamaForCausalLM", 1),
    Facts(None, "FP8", 89, None, 2),
    Facts("W4A16_AWQ", "INT8", 90, "Qwen2ForCausalLM", 1),
]


def test_options(tmp_path: Path) -> None:
    values = [True, False, 0, 64, -1, "auto", "fp8", "paged", "disabled", "nonsense", ["a", "b"]]
    names = [*table("build_options")["options"], "maxOutputLen", "outputDir", "maxBatchSize", "nonsense"]
    asked: list[dict[str, Any]] = [{name: v} for name in names for v in values]
    asked += [
        {"reduceFusion": True, "userBuffer": True},
        {"multipleProfiles": True, "optNumTokens": 8},
        {"contextFmha": False, "usePagedContextFmha": True},
        {"contextFmha": False},
        {"gatherContextLogits": True, "maxDraftLen": 3},
        {"useFusedMlp": False, "gemmSwigluPlugin": "fp8"},
        {"kvCacheType": "disabled", "usePagedContextFmha": False},
    ]
    profiles: list[dict[str, Any]] = [
        {},
        *(p["options"] for p in table("build_options")["profiles"].values()),
    ]
    cases = [
        {"facts": vars(f), "class": f.engine_class, "profile": profile, "asked": a}
        for f in MODELS
        for profile in profiles
        for a in (asked if not profile else [{}, {"gemmPlugin": "auto"}, {"contextFmha": False}])
    ]
    nix = evaluate(
        """map (c: value (check.options.flags (check.options.resolve "e" "trtllm-1.2.1" {
          inherit (c.facts) quantization sm architecture;
          kvCache = c.facts.kv_cache;
          engineClass = c.class;
          tensorParallel = c.facts.tensor_parallel;
        } c.profile c.asked))) data""",
        cases,
        tmp_path,
    )

    def ours(case: dict[str, Any]) -> list[str]:
        checked = options.check(case["asked"], "trtllm-1.2.1")
        return options.flags(resolve(Facts(**case["facts"]), case["profile"], checked))

    for case, theirs in zip(cases, nix, strict=True):
        assert said(lambda case=case: ours(case)) == theirs, case
    assert sum(x is None for x in nix) > 50 and sum(x is not None for x in nix) > 50


def test_arguments_of_the_llm_class(tmp_path: Path) -> None:
    tables = table("llm_args")
    values = [True, 3, 0.5, "auto", {}, ["a"]]
    names = [*tables["arguments"], *tables["own"], *tables["tensorrtOnly"]["names"], "nonsense"]
    cases = [{n: v} for n in names for v in values]
    cases += [{"kv_cache_config": {k: v}} for k in [*tables["kv_cache_config"], "x"] for v in values]
    nix = evaluate('map (c: value (check.llmapi.arguments "e" "trtllm-1.1.0" c)) data', cases, tmp_path)
    mine = [said(lambda c=c: llmapi.check(c, "trtllm-1.1.0")) for c in cases]
    assert nix == mine and None in mine and any(mine)
