"""Evaluation and the command line know the same GPUs for every number format and kind."""

from __future__ import annotations

import pytest

from enginix.kinds.registry import find_kind
from enginix.tables import load_table
from nix_evaluation import ROOT, check, needs_nix


@needs_nix
@pytest.mark.parametrize(
    ("kind", "function"), [("llmapi", 'computes "f"'), ("tensorrt", 'quantization "f" null')]
)
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
          in (builtins.tryEval (builtins.seq required (check.target.{function} format gpu))).success;
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


@needs_nix
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
