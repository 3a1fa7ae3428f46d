"""The command line and evaluation have the same defaults: arguments, and limits that are left out."""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
from pathlib import Path
from typing import Any

import reference_pages
from enginix.cli import command_table
from enginix.errors import UsageError
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import resolve_plan_limits
from enginix.kinds.tensorrt.build.options import resolve_limits
from enginix.letter_case import to_snake_case
from enginix.memory_plan.arithmetic import ModelSizes
from nix_evaluation import check, needs_nix

# File of nix/ → the command that does the same.
COMMAND_OF = {
    "mk-calibration.nix": "calibrate",
    "mk-checkpoint.nix": "convert",
    "mk-gateway.nix": "gateway",
    "mk-quantized.nix": "quantize",
    "mk-reference-answers.nix": "reference",
    "mk-runner.nix": "runner",
    "mk-serve.nix": "runner",
    "mk-triton-repo.nix": "triton-repo",
    "mk-triton-server.nix": "serve",
    "kinds/edgellm/default.nix": "edgellm-build",
    "kinds/llmapi/default.nix": "build",
    "kinds/reference/default.nix": "build",
    "kinds/tensorrt/default.nix": "build",
}
# Options that switch off what is an argument of Nix.
SWITCHES = {
    "skipSpecialTokens": "keep_special_tokens",
    "excludeInputInOutput": "include_input",
}
# Where the two differ, and why.
DIFFERENT = {
    ("mk-quantized.nix", "device"): "null takes the CPU for small models; a command's user is at the machine",
    ("kinds/reference/default.nix", "runtime"): "the option is of the other kinds",
    ("mk-triton-repo.nix", "interpreter"): "a switch, as Nix knows the engine's checkpoint",
}


def _parse_default(text: str | None) -> tuple[bool, Any]:
    """Return whether a default of Nix is a literal, and its value."""
    if text is None or text == "null":
        return True, None
    if text in ("true", "false") or re.fullmatch(r'-?\d+|"[^"$]*"', text):
        return True, json.loads(text)
    return False, None


def test_arguments_have_one_default() -> None:
    compared, different = 0, []
    for file, command in COMMAND_OF.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(f"enginix.cli.{command_table.COMMANDS[command][0]}").add_arguments(parser)
        options = {action.dest: action.default for action in parser._actions}
        arguments = [a for p in reference_pages.read_patterns(reference_pages.ROOT / "nix" / file) for a in p]
        for argument in arguments:
            is_literal, value = _parse_default(argument.default)
            name = to_snake_case(argument.name)
            switch = SWITCHES.get(argument.name, f"no_{name}")
            if not is_literal or (file, argument.name) in DIFFERENT:
                continue
            if value is True and switch in options:
                name, value = switch, False
            if name in options:
                compared += 1
                if options[name] != value:
                    different.append(
                        f"{file}: {argument.name}: {value!r}, enginix {command}: {options[name]!r}"
                    )
    assert different == [] and compared > 60


@needs_nix
def test_limits_that_are_left_out_are_the_same(tmp_path: Path) -> None:
    """Any of them given or not: mkEngine, enginix build and enginix plan."""
    chance = random.Random(19)
    values = {
        "maxBatchSize": (1, 3, 8, 64, 2048),
        "maxBeamWidth": (1, 4),
        "maxInputLen": (1, 100, 4096),
        "maxNumTokens": (16, 512, 8192),
        "maxSeqLen": (2, 128, 4096, 40960),
    }
    cases = [
        {
            "context": chance.choice((None, 128, 2048, 40960)),
            "limits": {n: chance.choice(v) for n, v in values.items() if chance.random() < 0.4},
        }
        for _ in range(400)
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    theirs = check(
        f"""map (c:
          let
            model = if c.context == null then {{ }} else {{ inherit (c) context; }};
            found = check.limits.resolve "f" model {{ }} c.limits;
            result = builtins.tryEval (builtins.deepSeq found found);
          in if result.success then result.value else null
        ) (builtins.fromJSON (builtins.readFile {tmp_path}/cases.json))"""
    )
    planned = 0
    for case, expected in zip(cases, theirs, strict=True):
        try:
            found = vars(resolve_limits(case["context"], case["limits"]))
        except UsageError:
            found = None
        if expected is None or found is None:
            # Evaluation refuses more: what trtllm-build would find wrong itself.
            assert expected is None, case
            continue
        assert found == expected, case
        if expected["maxBeamWidth"] == 1 and case["context"] is not None:
            asked = {
                to_snake_case(n): v
                for n, v in case["limits"].items()
                if n not in ("maxBeamWidth", "maxInputLen")
            }
            sizes = ModelSizes(2, 4, 4, 8, 32, 64, 100, case["context"])
            limits = resolve_plan_limits(sizes, PlanRequest(kind="tensorrt", **asked))
            assert (limits.max_batch_size, limits.max_seq_len) == (
                expected["maxBatchSize"],
                expected["maxSeqLen"],
            )
            assert limits.max_num_tokens == min(
                expected["maxNumTokens"], expected["maxBatchSize"] * expected["maxSeqLen"]
            ), case
            planned += 1
    assert planned > 50 and sum(t is not None for t in theirs) > 100
