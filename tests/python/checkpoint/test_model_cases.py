"""Every model of tests/golden/models.tar.xz: the logits of transformers, or a refusal whose fix works.

The models are small and random; each has one fault or peculiarity of a public report.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import model_cases
import numpy as np
import pytest
import torch
import transformers

from enginix import manifest
from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.verify import verify_checkpoint
from enginix.cli import main
from enginix.errors import EnginixError, UsageError
from enginix.hub.lock import Selection, read_lock
from enginix.hub.locking import make_lock
from enginix.inspect import describe_model, open_model
from enginix.kinds.reference.reference_build import ReferenceBuildOptions, build_reference_engine
from enginix.kinds.reference.served_engine import read_reference_engine
from enginix.reference.executor import Executor
from enginix.triton.models.chat import Chat, load_chat_template
from hub import Hub

ROOT = model_cases.root()
# Case → what a note of the conversion says; None where it has nothing to say.
EQUAL: dict[str, str | None] = {
    "llama-partial-rotary": "partial_rotary_factor 0.5 is ignored, as transformers does",
    "moe-dead-expert": None,
    "no-eps-mixtral": None,
    "no-eps-phi3": None,
    "phi3-mini-4k": "sliding window 64",
    "phi4-mini": None,
    "repo-infinity-llama": None,
    "repo-odd-names": None,
    "repo-variants": None,
    "tied-but-head-differs": "a different lm_head.weight is stored",
    "tok-additional-templates": None,
    "tok-eos-config-only": None,
    "tok-eos-no-generation-config": None,
    "tok-sp-only": None,
    "yarn-attention-factor": None,
    "yarn-mscale-only": None,
    "yarn-no-original": None,
}
# Quantized; transformers does not read these formats, so the checkpoint is held to the model's own bytes.
QUANTIZED = ("inline-ignore-exclude-null", "lowercase-algo", "nvfp4-zero-block-scale")
# Case → what is wrong, and the way out.
REFUSED: dict[str, tuple[str, str]] = {
    "embedding-8b": ("names lack 'model.'", "save_pretrained it again; without a head of its own it must be"),
    "embedding-no-prefix": ("names lack 'model.'", "save_pretrained"),
    "html-weights": ("an HTML page, not the file", "a gated model needs a token"),
    "kv-contradiction": ("KV cache is not quantized, and FP8 in config.json", "make both match the weights"),
    "lfs-pointer": ("a Git LFS pointer, not the file", "git lfs pull"),
    "llama3-incomplete": ("llama3 rope scaling's high_freq_factor", "config.json"),
    "longrope-attention-factor": ("longrope's attention_factor is 1.0", "llmapi"),
    "module-prefix": ("names begin with 'module.'", "remove 'module.' from the names"),
    "nvfp4-moe-expert-no-input-scale": ("calibration never reached this expert", "more calibration text"),
    "plan-mla": ("architecture 'DeepseekV3ForCausalLM' is unknown", "llmapi"),
    "quant-config-missing": ("there is no hf_quant_config.json", "fetch hf_quant_config.json"),
    "qwen3moe-fused": ("experts are fused in one tensor", "one tensor an expert"),
    "repo-adapter": ("a LoRA adapter, not a model", "merge_and_unload"),
    "repo-missing-shard": ("names model-00002-of-00002.safetensors, which is not there", "whole repository"),
    "repo-mistral-native": ("weights in Mistral's own layout", "convert_mistral_weights_to_hf"),
    "repo-no-index": ("no model.safetensors.index.json beside model-00001", "save_pretrained"),
}


def test_every_case_is_named() -> None:
    ours = {*EQUAL, *QUANTIZED, *REFUSED, "plan-mla.lock.json"}
    assert ours == set(model_cases.list_cases())


def convert(case: str, out: Path) -> Any:
    return convert_model(ROOT / case, out, ConvertOptions(dtype="float32"))


@pytest.mark.parametrize("case", EQUAL)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    plan = convert(case, tmp_path / "out")
    said = EQUAL[case]
    assert any(said in note for note in plan.notes) if said else not any("window" in n for n in plan.notes)
    assert verify_checkpoint(tmp_path / "out").findings == []
    assert list(CheckpointComparison(tmp_path / "out", ROOT / case).findings()) == []
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        ROOT / case, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    executor, window = Executor.load(tmp_path / "out"), plan.model.sliding_window
    for length in (1, 30, 60, 120):
        ids = [(13 * i + 5) % executor.config.vocab_size for i in range(length)]
        if window is not None and length > window:
            with pytest.raises(UsageError, match=f"accepts at most {window}"):
                executor.forward([ids])
            continue
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0]
        ours = executor.forward([ids])[0]
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5, length


@pytest.mark.parametrize("case", QUANTIZED)
def test_a_quantized_model_is_carried_over(case: str, tmp_path: Path) -> None:
    convert(case, tmp_path / "out")
    assert list(CheckpointComparison(tmp_path / "out", ROOT / case).findings()) == []
    findings = [finding.what for finding in verify_checkpoint(tmp_path / "out").findings]
    if case == "nvfp4-zero-block-scale":
        assert findings == ["is zero over 1 blocks with codes other than zero: their weights are lost"]
    else:
        assert findings == []
    config = json.loads((tmp_path / "out/config.json").read_text())
    if case == "lowercase-algo":
        assert config["quantization"]["kv_cache_quant_algo"] == "FP8"


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_is_wrong_and_the_way_out(case: str, tmp_path: Path) -> None:
    with pytest.raises(EnginixError) as refused:
        convert(case, tmp_path / "out")
    what, fix = REFUSED[case]
    assert what in refused.value.what and fix in str(refused.value.fix)
    assert "download" not in str(refused.value.fix) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", [*EQUAL, *QUANTIZED, *REFUSED])
def test_inspect_and_plan_judge_as_conversion_does(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one model, one answer; a value that headers cannot tell (a note, a scale) is conversion's alone."""
    converts = case not in REFUSED
    try:
        with open_model(str(ROOT / case)) as model:
            description = describe_model(model)
    except EnginixError as e:
        assert not converts and REFUSED[case][0] in e.what
        return
    assert (description.refusal is None) == converts, description.refusal
    if not converts:
        assert REFUSED[case][0] in str(description.refusal)
    if case == "repo-no-index":
        return  # no weights that a plan could count
    assert main(["plan", str(ROOT / case), "--target", "b200"]) == (0 if converts else 1)


HUB = {
    "repo-missing-shard": "names model-00002-of-00002.safetensors, which the repository does not have",
    "repo-mistral-native": "weights in Mistral's own layout",
    "repo-adapter": "a LoRA adapter of meta-llama/Llama-3.1-8B, not a model",
    "repo-no-index": None,
    "repo-odd-names": None,
    "repo-variants": None,
    "repo-infinity-llama": None,
}


@pytest.mark.parametrize("case", HUB)
def test_locks_tell_before_anything_is_paid_for(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub({"acme/case": ROOT / case}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        if said := HUB[case]:
            with pytest.raises(EnginixError) as refused:
                make_lock("acme/case", Selection())
            assert said in refused.value.what
            return
        new = make_lock("acme/case", Selection())
        paths = {f.path for f in new.lock.files}
        if case == "repo-variants":
            assert {p for p in paths if "model" in p} == {"model.safetensors"}
            assert any("model.fp16.safetensors left out" in note for note in new.notes)
        if case == "repo-no-index":
            assert any("there is no model.safetensors.index.json" in note for note in new.notes)
        (tmp_path / "x.lock.json").write_text(new.lock.dump())
        assert main(["fetch", str(tmp_path / "x.lock.json"), "-o", str(tmp_path / "model")]) == 0
        assert all(
            (tmp_path / "model" / path).read_bytes() == (ROOT / case / path).read_bytes() for path in paths
        )


def build(case: str, tmp_path: Path) -> Path:
    convert_model(ROOT / case, tmp_path / "checkpoint", ConvertOptions())
    options = ReferenceBuildOptions(gated=False)
    build_reference_engine(tmp_path / "checkpoint", ROOT / case, tmp_path / "engine", options)
    return tmp_path / "engine"


@pytest.mark.parametrize("case", ["tok-eos-config-only", "tok-eos-no-generation-config"])
def test_an_engine_stops_where_the_model_stops(case: str, tmp_path: Path) -> None:
    engine = build(case, tmp_path)
    found = manifest.read_manifest(engine)
    model = transformers.AutoModelForCausalLM.from_pretrained(ROOT / case, dtype=torch.float32).eval()
    prompt = found.results["golden"]["promptTokens"]
    with torch.no_grad():
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0].tolist()
    ends = list(read_reference_engine(engine).end_ids)
    assert ends == found.results["golden"]["endIds"] == [2]
    assert Executor.load(engine / "checkpoint").greedy(prompt, 40, ends) == theirs[len(prompt) :]


def test_templates_of_a_directory_reach_the_engine(tmp_path: Path) -> None:
    engine = build("tok-additional-templates", tmp_path)
    chat = Chat([{"role": "user", "content": "a"}], {"tools": [{"name": "weather"}]})
    theirs, ours = (load_chat_template(d) for d in (ROOT / "tok-additional-templates", engine / "tokenizer"))
    assert theirs.render(chat) == ours.render(chat)


def test_a_tokenizer_without_its_fast_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(EnginixError) as refused:
        build("tok-sp-only", tmp_path)
    assert "tokenizer.json" in refused.value.what and "save_pretrained" in str(refused.value.fix)


def test_a_window_bounds_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(ROOT / "phi3-mini-4k"), "--target", "h200", "--kind", "reference"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"]["maxSeqLen"] == 64
    assert main([*words, "--max-seq-len", "65"]) == 1
    assert "--max-seq-len 65 exceeds the model's sliding window of 64 tokens" in capsys.readouterr().out
    convert("phi3-mini-4k", tmp_path / "checkpoint")
    found = manifest.read_manifest(tmp_path / "checkpoint")
    assert found.model["attentionWindow"] == [64]
    assert Executor.load(tmp_path / "checkpoint").config.context == 64


def test_mla_is_planned_by_its_latent_vector(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "h200", "--kind", "llmapi", "--json"]
    for parallel in ("1", "8"):
        main(["plan", str(ROOT / "plan-mla"), *words, "--tensor-parallel", parallel])
        # (kv_lora_rank 64 + qk_rope_head_dim 16) x 4 layers x 2 bytes, on every rank
        assert json.loads(capsys.readouterr().out)["memory"]["kvToken"] == 640
    facts = read_lock(ROOT / "plan-mla.lock.json").model
    assert facts["architecture"] == "DeepseekV3ForCausalLM"
    assert main(["plan", str(ROOT / "plan-mla.lock.json"), *words, "--offline"]) == 3
    assert "leave --offline out" in capsys.readouterr().err


def engine_yarn(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Frequencies and magnitude of TensorRT-LLM's YaRN table (create_attention_const_params)."""
    scaling, width, base = config["rotary_scaling"], config["rotary_embedding_dim"], config["rotary_base"]
    factor = scaling.get("factor", 1.0)
    original = scaling.get("original_max_position_embeddings", 4096)

    def find_dimension(rotations: float) -> float:
        return float(width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base)))

    low = max(math.floor(find_dimension(scaling.get("beta_fast", 32.0))), 0)
    high: float = min(math.ceil(find_dimension(scaling.get("beta_slow", 1.0))), width - 1)
    high += 0.001 if high == low else 0
    inverse = 1 / base ** (np.arange(0, width, 2) / width)
    ramp = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    scale = magnitude(scaling.get("mscale", 1.0)) / magnitude(scaling.get("mscale_all_dim", 0.0))
    return inverse / factor * ramp + inverse * (1 - ramp), scale


@pytest.mark.parametrize("case", ["yarn-attention-factor", "yarn-mscale-only", "yarn-no-original"])
def test_the_engines_yarn_table_is_that_of_transformers(case: str, tmp_path: Path) -> None:
    """With TensorRT-LLM's defaults for what config.json leaves out, not with transformers'."""
    convert(case, tmp_path / "out")
    frequencies, magnitude = engine_yarn(json.loads((tmp_path / "out/config.json").read_text()))
    config = transformers.AutoConfig.from_pretrained(ROOT / case)
    rotary = transformers.AutoModelForCausalLM.from_config(config).model.rotary_emb
    assert np.abs(rotary.inv_freq.numpy() / frequencies - 1).max() < 1e-6
    assert magnitude == pytest.approx(float(rotary.attention_scaling), abs=1e-6)
