"""What config.json leaves to the loader, and what an engine's class cannot load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import golden
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.cli import main
from enginix.errors import UsageError

CASES = {c.case: c for c in golden.conversions()}
# Keys that a release may not know: Mapping.from_dict and QuantConfig end in a TypeError on one of them.
LATER = {
    "mapping": {"enable_attention_dp", "enable_lm_head_tp_in_adp", "cp_config", "cp_size"},
    "quantization": {
        "smoothquant_val",
        "clamp_val",
        "use_meta_recipe",
        "has_zero_point",
        "pre_quant_scale",
        "mamba_ssm_cache_dtype",
    },
}


@pytest.mark.parametrize("case", ["llama-bf16", "mixtral-bf16", "llama-fp8-kvfp8", "qwen2-bf16"])
def test_keys_that_hold_their_default_are_left_to_the_loader(case: str, tmp_path: Path) -> None:
    convert_model(CASES[case].model, tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2)))
    config = json.loads((tmp_path / "out/config.json").read_text())
    for section, keys in LATER.items():
        assert not keys & set(config[section]), section
    assert config["mapping"]["tp_size"] == config["mapping"]["world_size"] == 2
    assert "quant_algo" in config["quantization"]


def test_a_default_that_is_not_held_is_written(tmp_path: Path) -> None:
    convert_model(CASES["llama-fp8-partial"].model, tmp_path / "out", ConvertOptions())
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization"]["exclude_modules"]


@pytest.mark.parametrize("case", ["phi3-bf16", "phi3-fp8", "phi3-longrope", "phi3-tied-odd"])
def test_phi3_has_no_pipeline(case: str, tmp_path: Path) -> None:
    """Its class makes embedding, last norm and head on every rank: a stage's own weights do not load."""
    with pytest.raises(UsageError, match=r"--pipeline-parallel 2.*Phi3ForCausalLM") as caught:
        convert_model(
            CASES[case].model,
            tmp_path / "out",
            ConvertOptions(mapping=CheckpointMapping(1, 2), kind="tensorrt"),
        )
    assert "--tensor-parallel" in str(caught.value.fix) and not (tmp_path / "out").exists()
    convert_model(CASES[case].model, tmp_path / "one", ConvertOptions(kind="tensorrt"))


def test_phi3_has_no_pipeline_on_the_command_line(tmp_path: Path) -> None:
    words = ["convert", str(CASES["phi3-bf16"].model), "--pipeline-parallel", "2", "-o"]
    assert main([*words, str(tmp_path / "out")]) == 2 and not (tmp_path / "out").exists()
    # The reference executor takes whatever stages there are.
    assert main([*words, str(tmp_path / "out"), "--kind", "reference"]) == 0
