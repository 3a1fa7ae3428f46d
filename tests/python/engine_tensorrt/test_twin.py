"""Evaluation (nix/check) and the command line refuse and write the same: one table, two readers."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from enginix import letter_case
from enginix.errors import UsageError
from enginix.kinds.llmapi import llmapi_engine
from enginix.kinds.tensorrt.build import options
from enginix.kinds.tensorrt.build.build_subject import BuildSubject, make_build_subject
from enginix.kinds.tensorrt.build.command_line import parse_arguments
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.kinds.tensorrt.build.option_rules import resolve_options
from enginix.kinds.tensorrt.build.request import BuildRequest, predict_effective_build
from enginix.machine.target import find_target
from enginix.runtime import table as runtimes
from enginix.runtime.preflight import check_support
from enginix.tables import load_table
from golden_requests import golden_rows
from nix_evaluation import evaluate, needs_nix, said

pytestmark = needs_nix


def test_limits(tmp_path: Path) -> None:
    profiles: list[dict[str, int]] = [{}, {"maxBatchSize": 4, "maxNumTokens": 4096}]
    cases = [
        {
            "profile": profile,
            "context": context,
            "given": {k: v for k, v in zip(names, values, strict=True) if v is not None},
        }
        for names in [("maxBatchSize", "maxSeqLen", "maxInputLen", "maxNumTokens")]
        for context in (None, 2048)
        for profile in profiles
        for values in itertools.product((None, 1, 64), (None, 16, 4096), (None, 1, 32), (None, 8, 512))
    ]
    nix = evaluate('map (c: value (check.limits.resolve "e" c c.profile c.given)) data', cases, tmp_path)
    mine = [
        said(lambda c=c: vars(options.resolve_limits(c["context"], c["given"], c["profile"]))) for c in cases
    ]
    assert nix == mine and None in mine and any(mine)


MODELS = [
    BuildSubject("MixtralForCausalLM", 90, "FP8", "FP8", 2),
    BuildSubject("LlamaForCausalLM", 100, "FP8"),
    BuildSubject("Qwen3ForCausalLM", 120, "NVFP4", "FP8", 4),
    BuildSubject("LlamaForCausalLM", 80),
    BuildSubject(None, 89, None, "FP8", 2),
    BuildSubject("Qwen2ForCausalLM", 90, "W4A16_AWQ", "INT8"),
    BuildSubject("LlamaForCausalLM", 90, "FP8", "FP8", 2, num_eagle_layers=4),
    BuildSubject("LlamaForCausalLM", 100, "NVFP4", None, 2),
]
LLM_API = MODELS[-1]


def test_options(tmp_path: Path) -> None:
    values = [True, False, 0, 64, -1, "auto", "fp8", "paged", "disabled", "nonsense", ["a", "b"]]
    names = [*load_table("build_options")["options"], "maxOutputLen", "outputDir", "maxBatchSize", "nonsense"]
    asked: list[dict[str, Any]] = [{name: v} for name in names for v in values]
    asked += [
        {"reduceFusion": True, "userBuffer": True},
        {"multipleProfiles": True, "optNumTokens": 8},
        {"contextFmha": False, "usePagedContextFmha": True},
        {"contextFmha": False},
        {"gatherContextLogits": True, "maxDraftLen": 3},
        {"useFusedMlp": False, "gemmSwigluPlugin": "fp8"},
        {"kvCacheType": "disabled", "usePagedContextFmha": False},
        {"gatherAllTokenLogits": True, "maxDraftLen": 3},
        {"gatherAllTokenLogits": True, "gatherContextLogits": False},
        {"gatherAllTokenLogits": True, "gatherContextLogits": True},
        {"loraPlugin": "auto", "loraTargetModules": ["attn_q"]},
        {"loraPlugin": "auto", "loraDir": ["a"], "gemmSwigluPlugin": "fp8"},
        {"loraTargetModules": ["attn_q", "q_proj"], "loraPlugin": "auto"},
        {"speculativeDecodingMode": "eagle", "usePagedContextFmha": False},
        {"gemmPlugin": "disable"},
        {"gemmPlugin": "nvfp4"},
    ]
    profiles: list[dict[str, Any]] = [
        {},
        *(p["options"] for p in load_table("build_options")["profiles"].values()),
    ]
    cases = [
        {
            "facts": vars(f),
            "strategy": "llm-api" if f is LLM_API else "checkpoint",
            "profile": profile,
            "asked": a,
        }
        for f in MODELS
        for profile in profiles
        for a in (asked if not profile else [{}, {"gemmPlugin": "auto"}, {"contextFmha": False}])
    ]
    # One engine is asked for all values, and each for those that its option takes.
    if not os.environ.get("ENGINIX_SLOW"):
        refused = [
            a for a in asked if said(lambda a=a: options.check_build_options(a, "trtllm-1.2.1")) is None
        ]
        cases = [c for c in cases if c["facts"] == vars(MODELS[0]) or c["asked"] not in refused]
    nix = evaluate(
        """map (c: value (check.options.flags (check.options.resolve "e" "trtllm-1.2.1" {
          inherit (c.facts) quantization sm architecture;
          inherit (c) strategy;
          kvCache = c.facts.kv_cache;
          eagleLayers = c.facts.num_eagle_layers;
          tensorParallel = c.facts.tensor_parallel;
        } c.profile c.asked))) data""",
        cases,
        tmp_path,
    )

    def ours(case: dict[str, Any]) -> list[str]:
        checked = options.check_build_options(case["asked"], "trtllm-1.2.1")
        return options.format_option_flags(
            resolve_options(BuildSubject(**case["facts"]), case["profile"], checked, case["strategy"])
        )

    for case, theirs in zip(cases, nix, strict=True):
        assert said(lambda case=case: ours(case)) == theirs, case
    assert sum(x is None for x in nix) > 50 and sum(x is not None for x in nix) > 50


def as_asked(arguments: list[str]) -> tuple[dict[str, int], dict[str, Any]]:
    """Limits and options of a command line, in enginix's names and types."""
    tables, limits, asked = load_table("build_options"), {}, {}
    for flag, value in parse_arguments(arguments).items():
        name = letter_case.to_camel_case(flag)
        kind = tables["options"].get(name, {}).get("type")
        if name in tables["limits"]:
            limits[name] = value
        else:
            asked[name] = {"enable": True, "disable": False}[value] if kind == "switch" else value
    return limits, asked


def refusal(row: dict[str, Any], limits: dict[str, int], asked: dict[str, Any]) -> str | None:
    """Why the command line refuses a golden request; None where it builds it."""
    said = row["checkpoint"]
    facts = make_build_subject(said, row["sm"])
    gpu = replace(find_target("h200"), sm=row["sm"])
    checkpoint = BuildCheckpoint(None, *(None,) * 4, None, said["tp_size"], said["pp_size"], 0, config=said)  # type: ignore[arg-type]
    try:
        check_support(facts.quantization, facts.kv_cache, facts.architecture, gpu)
        settled = resolve_options(facts, {}, options.check_build_options(asked, "trtllm-1.2.1"))
        sizes = options.resolve_limits(said["max_position_embeddings"], limits)
        request = BuildRequest(
            "e", gpu, runtimes.find_runtime("trtllm-1.2.1"), sizes, settled, frozenset(asked)
        )
        made = predict_effective_build(request, checkpoint)
    except UsageError as e:
        return str(e)
    theirs = {**row.get("build_config", {}), **row.get("plugin_config", {})}
    ours = {**made.build_config, **made.plugin_config}
    # kv_cache_type and FP8 context attention are always written out.
    assert {k: v for k, v in ours.items() if theirs.get(k) != v} == {}, row
    return None


def test_every_golden_request(tmp_path: Path) -> None:
    """Both refuse what the tool ends with an error; otherwise both predict the tool's settings."""
    rows = [(row, *as_asked(row["arguments"])) for row in golden_rows()]
    cases = [
        {
            "said": row["checkpoint"],
            "sm": row["sm"],
            "limits": limits,
            "asked": asked,
        }
        for row, limits, asked in rows
    ]
    nix = evaluate(
        """map (c: value (let
          gpu = { name = "g"; inherit (c) sm; };
          facts = {
            quantization = check.target.quantization "e" null c.said.quant_algo gpu;
            kvCache = check.target.kvCache "e" null c.said.kv_cache_quant_algo gpu;
            architecture = check.target.architecture "e" c.said.architecture;
            tensorParallel = c.said.tp_size;
            eagleLayers = c.said.num_eagle_layers or null;
            inherit (c) sm;
          };
          settled = check.options.resolve "e" "trtllm-1.2.1" facts { } c.asked;
          sizes = check.limits.resolve "e" { context = c.said.max_position_embeddings; } { } c.limits;
          made = check.limits.effective "e" sizes settled facts;
        in builtins.deepSeq [ settled facts ] made)) data""",
        cases,
        tmp_path,
    )
    taken = 0
    for (row, limits, asked), theirs in zip(rows, nix, strict=True):
        why = refusal(row, limits, asked)
        assert (why is None) == (theirs is not None), (row, why, theirs)
        if row["result"] == "error":
            assert why is not None, row
        elif why is None:
            made = {letter_case.to_snake_case(name): value for name, value in theirs.items()}
            assert made == {name: row["build_config"][name] for name in made}, row
            taken += 1
    assert taken > 300


def test_arguments_of_the_llm_class(tmp_path: Path, chance: random.Random) -> None:
    tables = load_table("llm_args")
    values = [True, 3, 0.5, "auto", {}, ["a"]]
    names = [*tables["arguments"], *tables["own"], *tables["tensorrtOnly"]["names"], "nonsense"]
    has_all_values = "ENGINIX_SLOW" in os.environ
    cases = [{n: v} for n in names for v in (values if has_all_values else chance.sample(values, 2))]
    values += [None, [], [1], [[1]], -1, 2]
    nested = [
        (name, {tables["dispatch"][row["dispatch"]]["key"]: kind}, tables["classes"][class_]["fields"])
        for name, row in tables["arguments"].items()
        if "dispatch" in row
        for kind, class_ in tables["dispatch"][row["dispatch"]]["classes"].items()
    ]
    nested += [
        (name, {}, tables["classes"][row["class"]]["fields"])
        for name, row in tables["arguments"].items()
        if "class" in row
    ]
    fields_of_classes = [
        {name: base | {k: v}} for name, base, fields in nested for k in [*fields, "x"] for v in values
    ]
    if not has_all_values:
        fields_of_classes = chance.sample(fields_of_classes, len(fields_of_classes) // 3)
    cases += fields_of_classes
    cases += [{"speculative_config": {"decoding_type": kind}} for kind in ("Lookahead", "X", 3, None)]
    cases += [{"scheduler_config": {"dynamic_batch_config": {"enable_batch_size_tuning": True}}}]
    nix = evaluate('map (c: value (check.llmapi.arguments "e" "trtllm-1.1.0" c)) data', cases, tmp_path)
    mine = [said(lambda c=c: llmapi_engine.check_llm_arguments(c, "trtllm-1.1.0")) for c in cases]
    assert nix == mine and None in mine and any(mine)
