"""``enginix plan``: weights are what the converter writes, the rest follows the stated formulas."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.cli import main
from enginix.errors import EnginixError
from enginix.hub import lock
from enginix.hub.model_metadata import extract_model_metadata
from enginix.inspect import open_model
from enginix.kinds.planning.lock_plan import plan_from_lock
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import plan_memory
from enginix.machine.gpu_table import TargetGpu, find_gpu
from enginix.memory_plan import arithmetic
from enginix.memory_plan.arithmetic import ModelSizes, PlanLimits
from enginix.memory_plan.weights import CheckpointSizes
from enginix.model import open_weights
from enginix.model.config import read_model_config
from hub import Hub

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "models" / "tiny-qwen3"
CATALOGUE = ROOT / "nix" / "catalogue"
PINNED = sorted(p.name.removesuffix(".lock.json") for p in CATALOGUE.glob("*.lock.json"))

MODELS = [TINY, *sorted(p for p in golden.root().glob("*/hf"))]


@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.parent.name if p.name == "hf" else p.name)
def test_sizes_are_those_of_the_files_that_convert_writes(model: Path, tmp_path: Path) -> None:
    compared = 0
    mappings = [(1, 1), (4, 1), (2, 2)]
    if model == TINY or os.environ.get("ENGINIX_SLOW"):
        mappings += [(2, 1), (1, 2)]
    for tp, pp in mappings:
        try:
            experts = read_model_config(model).experts
            ep = 1 if experts is None or experts.width % tp == 0 else tp
            out = tmp_path / f"{tp}-{pp}"
            convert_model(model, out, ConvertOptions(mapping=CheckpointMapping(tp, pp, ep)))
        except EnginixError:
            continue  # what cannot be written has no size to compare; which those are is the converter's test
        ranks = CheckpointSizes(read_model_config(model), open_weights(model)).ranks(tp, pp, None, None)
        written = [(out / f"rank{r}.safetensors").stat().st_size for r in range(tp * pp)]
        assert written == list(ranks.rank_files)
        assert sum(written) == ranks.files
        compared += 1
    if model == TINY:
        assert compared == 5


def test_a_model_counts_as_if_quantized_what_it_counts_when_it_is() -> None:
    model = golden.root() / "llama-nvfp4" / "hf"
    config, weights = read_model_config(model), open_weights(model)
    real = CheckpointSizes(config, weights)
    bare = CheckpointSizes(replace(config, quantization=None), weights)
    for tp in (1, 2):
        assert bare.heaviest(tp, 1, "NVFP4") == real.heaviest(tp, 1, None)


def planned(**asked: Any) -> Any:
    memory = asked.pop("memory", 2 * 10**9)
    with open_model(str(TINY)) as model:
        return plan_memory(model, TargetGpu("small", 90, memory), PlanRequest(**asked))


@pytest.mark.parametrize(
    "changes", [{"model_type": "llama"}, {"transformers_weights": "other.safetensors"}, {}]
)
def test_what_means_another_model_is_an_obstacle_or_a_note(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(TINY / "model.safetensors")
    raw = json.loads((TINY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **changes}))
    for kind in ("tensorrt", "reference", "llmapi"):
        with open_model(str(tmp_path)) as model:
            plan = plan_memory(model, TargetGpu("small", 90, 2 * 10**9), PlanRequest(kind=kind))
        said = plan.notes if kind == "llmapi" else plan.obstacles
        assert [
            key for key in ("model_type", "transformers_weights") if any(f"{key} is" in s for s in said)
        ] == [*changes], kind
        assert all("fix: " in text for text in said if any(key in text for key in changes))


def test_kv_cache_of_a_token_by_hand() -> None:
    # 4 layers, key and value, 4 KV heads of 32 bfloat16
    assert planned().memory.kv_token == 4 * 2 * 4 * 32 * 2
    assert planned(kv_cache="FP8").memory.kv_token == 4 * 2 * 4 * 32
    assert planned(tensor_parallel=2).memory.kv_token == 4 * 2 * 2 * 32 * 2
    # Eight ranks share four heads: each holds a copy of one.
    assert planned(tensor_parallel=8).memory.kv_token == 4 * 2 * 1 * 32 * 2
    assert planned(pipeline_parallel=3).memory.kv_token == 2 * 2 * 4 * 32 * 2


def test_pool_tokens_and_sequences_by_hand() -> None:
    found = planned(memory=10**9, max_batch_size=4, max_num_tokens=1024, max_seq_len=500)
    m = found.memory
    query, key_value = 8 * 32, 2 * 4 * 32
    assert m.workspace == 1024 * 2 * (3 * 128 + max(2 * query + key_value, 3 * 512)) + 4 * 4 * 2 * 2048
    assert m.pool == (10**9 - m.weights - m.workspace) * 90 // 100
    assert m.tokens == m.pool // 2048 // 32 * 32
    assert m.need_tokens == 512 and found.sequences == m.tokens // 512


@settings(max_examples=100, deadline=None)
@given(
    st.integers(10**6, 4 * 10**8), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4096), st.integers(1, 16384),
    st.integers(1, 4096), st.integers(1, 20),
)  # fmt: skip
def test_every_change_makes_it_fit_and_nothing_smaller_of_its_kind(
    memory: int, tp: int, batch: int, tokens: int, length: int, sequences: int
) -> None:
    sizes = ModelSizes(4, 8, 4, 32, 128, 512, 2048, 2048)
    limits = PlanLimits(batch, tokens, length, sequences, tp)
    gpu = TargetGpu("g", 120, memory)
    weights = arithmetic.estimate_weights(2_891_312, sizes, tied=True)
    if arithmetic.compute_memory(sizes, limits, gpu, weights).fits:
        return
    for change in arithmetic.find_changes(sizes, limits, gpu, weights):
        assert arithmetic.compute_memory(sizes, replace(limits, **change), gpu, weights).fits
        if "max_seq_len" in change and len(change) == 1:
            longer = replace(limits, max_seq_len=change["max_seq_len"] + 32)
            assert (
                longer.max_seq_len > length or not arithmetic.compute_memory(sizes, longer, gpu, weights).fits
            )


@pytest.mark.parametrize("name", ["llama-fp8-kvfp8", "mixtral-nvfp4", "qwen2-bf16"])
def test_a_repository_plans_like_its_directory(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Headers alone: no scale and no weight is there to be read."""
    directory, rest = golden.root() / name / "hf", ["--target", "b200", "--tp", "2", "--json"]
    with Hub({"own/model": directory}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        assert main(["plan", "own/model", *rest]) == 0
    there = json.loads(capsys.readouterr().out)
    assert main(["plan", str(directory), *rest]) == 0
    here = json.loads(capsys.readouterr().out)
    assert there["memory"] == here["memory"] and there["memory"]["exactWeights"]
    assert there["build"]["checkpoint"] == here["build"]["checkpoint"]


def test_exit_codes_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(TINY), "--target", "h200", "--json"]) == 0
    fits = json.loads(capsys.readouterr().out)
    assert fits["fits"] and fits["memory"]["exactWeights"] and fits["changes"] == []
    assert fits["certainty"] == {
        "weights": "exact", "kvToken": "exact", "workspace": "estimate", "pool": "estimate",
        "build": "estimate",
    }  # fmt: skip
    assert main(["plan", str(TINY), "--target", "h200", "--memory", "0.03", "--json"]) == 1
    less = json.loads(capsys.readouterr().out)
    assert (less["fits"], less["tightest"]) == (False, "workspace")
    assert less["changes"][0] == {"maxNumTokens": 4096}
    assert main(["plan", str(TINY), "--target", "h200", "--memory", "0.03", "--max-num-tokens", "4096"]) == 0
    assert main(["plan", str(TINY), "--target", "h2000"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["plan", str(TINY), "--target", "titan-v"]) == 2
    assert "--memory GB" in capsys.readouterr().err
    assert main(["plan", str(TINY), "--target", "h200", "--tp", "3"]) == 2
    assert "--tensor-parallel one of" in capsys.readouterr().err
    for flag in ("--max-batch-size", "--max-seq-len", "--max-num-tokens", "--sequences"):
        assert main(["plan", str(TINY), "--target", "h200", flag, "0"]) == 2
        assert flag in capsys.readouterr().err


def test_a_format_that_the_gpu_lacks_is_an_obstacle(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(golden.root() / "llama-nvfp4" / "hf")
    assert main(["plan", model, "--target", "h200"]) == 1
    assert "NVFP4 needs SM 100 or later; h200 is SM 90" in capsys.readouterr().out
    assert main(["plan", model, "--target", "rtx-pro-6000"]) == 0


def test_the_reference_kind_is_one_device_in_full_precision(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(TINY), "--target", "h200", "--kind", "reference", "--tp", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "kind reference runs on one device: --tensor-parallel 2 is left out" in found["notes"]
    # 1,443,200 parameters and the head that a checkpoint holds beside the tied embedding, in bfloat16
    assert found["memory"]["weights"] == (1_443_200 + 2048 * 128) * 2
    assert found["limits"]["tensorParallel"] == 1


@pytest.mark.parametrize("name", PINNED)
def test_pinned_entries_are_locks_whose_facts_are_their_configs(name: str) -> None:
    found = lock.read_lock(CATALOGUE / f"{name}.lock.json")
    config = (Path(__file__).parent / "configs" / f"{name}.json").read_bytes()
    pinned = {f.path: f for f in found.files}["config.json"]
    assert hashlib.sha256(config).hexdigest() == pinned.sha256 and len(config) == pinned.size
    assert extract_model_metadata({"config.json": config}, name) == found.model
    assert found.dump() == (CATALOGUE / f"{name}.lock.json").read_text()


def test_offline_plans_of_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert PINNED
    path = str(CATALOGUE / "qwen2_5-7b-instruct.lock.json")
    assert main(["plan", path, "--target", "l40s", "--offline"]) == 0
    assert "a lower bound" in capsys.readouterr().out
    small = ["plan", path, "--target", "l40s", "--memory", "16", "--offline"]
    assert main(small) == 1
    assert "smallest change" in capsys.readouterr().out
    assert main(["plan", str(TINY), "--target", "l40s", "--offline"]) == 2


@pytest.mark.parametrize("kind", ["tensorrt", "llmapi", "reference"])
def test_offline_counts_a_build_as_files_do(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The GPU of a build holds weights and workspace; a kind that is not compiled needs none."""
    plans = []
    for source in ([str(TINY)], [f"{TINY}.lock.json", "--offline"]):
        assert main(["plan", *source, "--target", "h200", "--kind", kind, "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    for plan in plans:
        needed = plan["memory"]["weights"] + plan["memory"]["workspace"] if kind == "tensorrt" else 0
        assert plan["build"]["gpuMemory"] == needed
    files, lock = (plan["build"] for plan in plans)
    assert {name for name, size in files.items() if size} == {name for name, size in lock.items() if size}
    # From the lock alone weights are a lower bound.
    assert 0.8 * files["hostMemory"] <= lock["hostMemory"] <= files["hostMemory"]


def test_offline_a_format_that_the_gpu_lacks_is_an_obstacle_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((CATALOGUE / "qwen2_5-7b-instruct.lock.json").read_text())
    told["model"]["quantization"] = "NVFP4"
    (tmp_path / "x.lock.json").write_text(json.dumps(told))
    line = ["plan", str(tmp_path / "x.lock.json"), "--offline", "--target"]
    assert main([*line, "h200"]) == 1
    assert "NVFP4 needs SM 100 or later; h200 is SM 90" in capsys.readouterr().out
    assert main([*line, "b200"]) == 0


@pytest.mark.parametrize(
    "gone", [["num_hidden_layers"], ["intermediate_size"], ["num_hidden_layers", "head_dim"]]
)
def test_what_is_not_counted_is_named_with_a_fix_that_works(gone: list[str], tmp_path: Path) -> None:
    """XGLM names its layers otherwise, SolarOpen has no width of a dense layer."""
    shutil.copytree(TINY, tmp_path / "model")
    whole = json.loads((TINY / "config.json").read_text()) | {"architectures": ["NovelForCausalLM"]}
    lacking = {key: value for key, value in whole.items() if key not in gone}
    for raw in (lacking, lacking | {key: whole[key] for key in gone}):
        (tmp_path / "model/config.json").write_text(json.dumps(raw))
        with open_model(str(tmp_path / "model")) as model:
            if raw is not lacking:
                assert plan_memory(model, find_gpu("h200"), PlanRequest(kind="llmapi")).memory.fits
                continue
            with pytest.raises(EnginixError, match="plan does not count NovelForCausalLM") as caught:
                plan_memory(model, find_gpu("h200"), PlanRequest(kind="llmapi"))
            assert gone[0] in caught.value.what and gone[0] in str(caught.value.fix)


def test_a_lock_without_facts_is_refused_by_name() -> None:
    with pytest.raises(EnginixError, match="does not have the model's layers"):
        plan_from_lock({}, {"model.safetensors": 5}, TargetGpu("g", 90, 10**9), PlanRequest(), "x.lock.json")


def test_edgellm_by_hand() -> None:
    found = planned(kind="edgellm", max_batch_size=3, max_input_len=64, max_seq_len=130)
    memory = found.memory
    # Pages of 128 tokens, all of them from the start; float16 whatever the model's dtype.
    assert memory.need_tokens == 3 * 256 and memory.kv_token == 4 * 2 * 4 * 32 * 2
    assert memory.pool == 2 * 10**9 - memory.weights - memory.workspace
    weights = open_weights(TINY)
    assert memory.weights == sum(t.nbytes for t in weights.tensors.values())
    assert found.obstacles and "no payload for SM 90" in found.obstacles[0]
    assert found.certainty.kv_token == "exact"
    assert "maxInputLen" in json.dumps(found.as_json()["limits"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tensor-parallel", "2"), "runs on one GPU"),
        (("--max-num-tokens", "512"), "has no --max-num-tokens"),
        (("--sequences", "2"), "has no --sequences"),
        (("--kv-cache", "int8"), "has no INT8 KV cache"),
        (("--dtype", "bfloat16"), "computes in float16"),
        (("--max-input-len", "9000"), "beyond --max-seq-len 8192"),
        (("--max-input-len", "0"), "0 is not a number above 0"),
        (("--max-batch-size", "2147483647"), "tokens of a step are more than 2147483647"),
    ],
)
def test_edgellm_refuses_what_it_does_not_have(words, said, capsys) -> None:
    line = ["plan", str(TINY), "--target", "rtx-5090", "--kind", "edgellm", *words]
    assert main(line) == 2 and said in capsys.readouterr().err
    assert main(["plan", str(TINY), "--target", "rtx-5090", "--max-input-len", "64"]) == 2
    assert "--max-input-len is for kind edgellm only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("rtx-5090", 0, "allocated from the start"),
        ("h200", 1, "no payload for SM 90"),
        ("gb10", 0, "payloads for SM 121 are in the wheel for aarch64"),
        ("jetson-t5000", 0, "shares its memory with the CPU"),
    ],
)
def test_edgellm_on_a_command_line(target, status, said, capsys) -> None:
    words = ["plan", str(TINY), "--target", target, "--kind", "edgellm", "--kv-cache", "fp8"]
    assert main(words) == status and said in capsys.readouterr().out
    lock = str(CATALOGUE / "qwen2_5-7b-instruct.lock.json")
    assert main(["plan", lock, "--offline", "--target", target, "--kind", "edgellm", "--json"]) == status
    assert json.loads(capsys.readouterr().out)["kind"] == "edgellm"


def test_an_option_that_is_clipped_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    lock = str(CATALOGUE / "qwen2_5-7b-instruct.lock.json")
    for words in (["plan", str(TINY)], ["plan", lock, "--offline"]):
        line = [*words, "--target", "h200", "--max-batch-size", "2", "--max-num-tokens", "512"]
        assert main([*line, "--max-seq-len", "128"]) == 0
        assert "max_num_tokens 512 is clipped to 256" in capsys.readouterr().out
        assert main([*line, "--max-seq-len", "2048", "--max-batch-size", "1"]) == 0
        assert "clipped" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["DeepseekV3ForCausalLM", "Lfm2ForCausalLM"])
def test_edgellm_knows_the_layout_of_its_own_architectures_alone(name: str, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    raw = json.loads((tmp_path / "model/config.json").read_text()) | {"architectures": [name]}
    (tmp_path / "model/config.json").write_text(json.dumps(raw))
    request = PlanRequest(kind="edgellm")
    with open_model(str(tmp_path / "model")) as model:
        assert plan_memory(model, find_gpu("rtx-5090"), request).certainty.kv_token == "estimate"


def test_an_architecture_or_format_that_edgellm_does_not_take_is_an_obstacle() -> None:
    from enginix.kinds.edgellm import memory_plan

    gpu = find_gpu("rtx-3090")
    assert memory_plan.find_edgellm_obstacles("Qwen3ForCausalLM", "NO_QUANT", gpu) == []
    assert (
        "architecture MambaForCausalLM is not supported"
        in memory_plan.find_edgellm_obstacles("MambaForCausalLM", "NO_QUANT", gpu)[0]
    )
    assert (
        "quantization FP8_BLOCK_SCALES is not supported"
        in memory_plan.find_edgellm_obstacles("Qwen3ForCausalLM", "FP8_BLOCK_SCALES", gpu)[0]
    )
    lacking = memory_plan.find_edgellm_obstacles("Qwen3ForCausalLM", "NVFP4", gpu)[0]
    assert "needs SM 100" in lacking and "which has BF16, FP16, INT8, INT4" in lacking


@settings(max_examples=150, deadline=None)
@given(
    memory=st.integers(10**6, 10**11),
    total=st.integers(1, 10**11),
    kv_heads=st.sampled_from([1, 2, 8]),
    kv_bits=st.sampled_from([8, 16]),
    sm=st.sampled_from([80, 89, 100]),
    limits=st.tuples(st.integers(1, 40000), st.integers(1, 300), st.integers(1, 200000)),
)
def test_every_change_of_edgellm_fits_and_is_no_larger(memory, total, kv_heads, kv_bits, sm, limits) -> None:
    from enginix.kinds.edgellm import memory_plan

    sizes = ModelSizes(28, 16, kv_heads, 128, 2048, 6144, 151936, 40960, kv_bits=kv_bits)
    asked = memory_plan.EdgellmPlanLimits(min(limits[0], limits[2]), limits[1], limits[2])
    gpu, weights = TargetGpu("g", sm, memory), arithmetic.estimate_weights(total, sizes, True)
    found = memory_plan.compute_edgellm_memory(sizes, asked, gpu, weights)
    if found.fits:
        return
    for change in memory_plan.find_edgellm_changes(sizes, asked, gpu, weights):
        less = replace(asked, **change)
        assert memory_plan.compute_edgellm_memory(sizes, less, gpu, weights).fits
        assert less.max_input_len <= less.max_kv_cache_capacity
        sizes_of = {name: value for name, value in change.items() if name.startswith("max_")}
        assert all(value <= getattr(asked, name) for name, value in sizes_of.items())
        assert less != asked


def test_a_pipeline_that_the_engine_class_lacks_is_an_obstacle(tmp_path: Path) -> None:
    case = next(c for c in golden.conversions() if c.case == "phi3-bf16")
    with open_model(str(case.model)) as model:
        gpu = TargetGpu("small", 90, 2 * 10**9)
        found = plan_memory(model, gpu, PlanRequest(pipeline_parallel=2))
        assert any("no pipeline for Phi3ForCausalLM" in o for o in found.obstacles)
        for asked in (PlanRequest(), PlanRequest(kind="reference", pipeline_parallel=2)):
            assert not any("pipeline" in o for o in plan_memory(model, gpu, asked).obstacles)


def test_this_machines_gpu_is_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from enginix.machine import target

    gpu = target.MachineGpu(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-0", 89, 12282 << 20, 11 << 30)
    machine = target.Machine("580.1", "13.0", (gpu,), "nvml")
    monkeypatch.setattr(target, "probe_machine", lambda _: machine)
    assert main(["plan", str(TINY), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["target"]["name"], planned["target"]["memory"]) == ("rtx-4070-ti", 12282 << 20)


def test_no_target_and_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["plan", str(TINY)]) == 2
    assert "enginix target lists the names" in capsys.readouterr().err


@pytest.mark.parametrize(("architecture", "is_told"), [("OPTForCausalLM", True), ("Qwen3ForCausalLM", False)])
def test_a_class_that_the_pytorch_backend_lacks_is_told(
    architecture: str, is_told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    raw = json.loads((model / "config.json").read_text()) | {"architectures": [architecture]}
    (model / "config.json").write_text(json.dumps(raw))
    told = f"TensorRT-LLM's PyTorch backend has no class for {architecture}"
    status = main(["plan", str(model), "--kind", "llmapi", "--target", "h200", "--json"])
    planned = json.loads(capsys.readouterr().out)
    assert (status, planned["fits"]) == ((1, False) if is_told else (0, True))
    assert any(obstacle.startswith(told) for obstacle in planned["obstacles"]) == is_told
    assert not any("no class" in note for note in planned["notes"])
    words = ["build", "--kind", "llmapi", "--model", str(model), "--runtime"]
    assert main([*words, "trtllm-1.2.1", "-o", str(tmp_path / "engine")]) == (3 if is_told else 0)
    assert (f"{told}, by its source of release 1.2" in capsys.readouterr().err) == is_told
    # Which classes a later release has is not known.
    assert main([*words, "trtllm-1.3.0rc20", "-o", str(tmp_path / "later")]) == 0
    assert (f"note: {told}" in capsys.readouterr().err) == is_told
    main(["compare", str(model), "--target", "h200"])
    assert (told in capsys.readouterr().out) == is_told
    locked = lock.read_lock(TINY.with_name("tiny-qwen3.lock.json"))
    metadata = {**locked.model, "architecture": architecture}
    files = {file.path: file.size for file in locked.files}
    for kind in ("llmapi", "tensorrt"):
        plan = plan_from_lock(metadata, files, find_gpu("h200"), PlanRequest(kind), "x.lock.json")
        assert any(why.startswith(told) for why in plan.obstacles) == (is_told and kind == "llmapi")
