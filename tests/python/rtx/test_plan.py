"""NVIDIA's builder, run here: plans that repeat, refusals that it makes, and the checks of what it wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_models

from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.cli import main
from enginix.compatibility.check import Mismatch, compare_with_machine, require_versions
from enginix.errors import CheckpointError, EnginixError, GateError, MachineError, ManifestError, UsageError
from enginix.inspect import open_model
from enginix.integrity import require_unchanged
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.planning.planner import plan_memory
from enginix.kinds.rtx import checkpoint_support, engine_build, plan_builder
from enginix.kinds.rtx.checkpoint_support import require_engine_checkpoint
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.kinds.rtx.network.writer import NetworkWriter
from enginix.kinds.rtx.plan_builder import PlanError, check_plan_header
from enginix.machine.gpu_table import find_gpu
from enginix.machine.target import Machine, MachineGpu
from enginix.manifest import read_manifest
from enginix.report.kinds import compare_kinds, read_compared_model

TINY = Path(__file__).resolve().parents[2] / "models/tiny-qwen3"
SMALL = EngineShape(2, 4, 32)
ALL = (80, 86, 89, 120, 121)
Describe = Callable[..., Any]


@pytest.fixture(scope="module")
def plan(tiny: Path, describe: Describe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plan") / "decoder.plan"
    network, log = describe(tiny, SMALL)
    header = plan_builder.build_plan(network, log, ALL, out)
    assert header.targets == ALL and header.length == out.stat().st_size
    return out


def test_plans_repeat(plan: Path, tiny: Path, describe: Describe, tmp_path: Path) -> None:
    network, log = describe(tiny, SMALL)
    plan_builder.build_plan(network, log, ALL, tmp_path / "again")
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (plan, tmp_path / "again")}
    assert len(digests) == 1
    assert sum("mha" in kernel for kernel in log.kernels) == network.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    "offset,value,said",
    [(0, b"x", "begins with"), (16, b"\x01", "length is"), (24, b"\x02", "version of"),
     (32, b"\x0e", "target SMs"), (32, b"\x7e", "not asked for"), (None, b"", "length is")],
)  # fmt: skip
def test_changed_headers_are_found(
    plan: Path, tmp_path: Path, offset: int | None, value: bytes, said: str
) -> None:
    content = bytearray(plan.read_bytes())
    if offset is None:
        content = content[:-1]
    else:
        content[offset : offset + 1] = value
    (tmp_path / "plan").write_bytes(content)
    with pytest.raises(PlanError, match=said):
        check_plan_header(tmp_path / "plan", "1.7.1.116", ALL)


def test_the_builders_refusals_are_errors(
    tiny: Path, shallow: Callable[[str], Path], describe: Describe, tmp_path: Path
) -> None:
    network, log = describe(shallow("FP8"), SMALL)
    with pytest.raises(PlanError, match="sm86"):
        plan_builder.build_plan(network, log, (86,), tmp_path / "fp8")
    network, log = describe(shallow("NVFP4"), SMALL)
    with pytest.raises(PlanError, match="sm89"):
        plan_builder.build_plan(network, log, (89,), tmp_path / "nvfp4")
    network, log = describe(tiny, SMALL)
    log.add(True, "a setter was refused")
    with pytest.raises(PlanError, match="a setter was refused"):
        plan_builder.build_plan(network, log, ALL, tmp_path / "logged")


def test_a_full_disk_is_the_error_of_a_build(
    trt: Any,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The bindings print and drop what a callback raises; the plan would be called short."""
    monkeypatch.setattr(engine_build, "PLAN_FILE", "/dev/full")
    out = tmp_path / "engine"
    words = ["--max-batch-size", "2", "--max-seq-len", "32", "-o", str(out)]
    assert main(["rtx-build", str(tiny), "--model", str(TINY), *words]) == MachineError.exit_code
    said = "".join(capfd.readouterr())
    assert "No space left on device" in said and "free disk space" in said
    assert "Traceback" not in said and "build the engine again" not in said
    assert not out.exists()


def test_a_setter_that_is_refused_in_passing_fails_the_build(
    tiny: Path, trt: Any, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(self: NetworkWriter, q: Any, k: Any, v: Any, mask: Any, lengths: Any, name: str) -> Any:
        softmax, causal = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.LOWER_RIGHT
        attention = self.network.add_attention_v2(q, k, v, softmax, causal)
        with contextlib.suppress(RuntimeError):
            attention.mask = mask  # beside a causal one: refused, and the attention stays
        attention.key_value_lengths = lengths
        return attention.get_output(0)

    monkeypatch.setattr(NetworkWriter, "attend", attend)
    network, log = describe(tiny, SMALL)
    assert log.errors
    with pytest.raises(PlanError, match="refused it"):
        plan_builder.build_plan(network, log, ALL, tmp_path / "plan")


@pytest.mark.parametrize("name", ["FP8", "INT8_SQ", "INT4_AWQ", "NVFP4"])
def test_every_format_builds_for_all_its_targets(
    shallow: Callable[[str], Path], describe: Describe, tmp_path: Path, name: str
) -> None:
    network, log = describe(shallow(name), SMALL)
    formats = checkpoint_support.list_checkpoint_formats(network.config)
    targets = checkpoint_support.resolve_targets(formats, None)
    header = plan_builder.build_plan(network, log, targets, tmp_path / "plan")
    assert header.targets == targets


def test_an_attention_in_parts_is_found(
    tiny: Path, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, log = describe(tiny, SMALL)
    config = replace(network.config, num_hidden_layers=5)
    monkeypatch.setattr(network, "config", config)
    with pytest.raises(PlanError, match="4 of 5 layers"):
        plan_builder.build_plan(network, log, ALL, tmp_path / "plan")


@pytest.fixture(scope="module")
def engine(trt: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "engine"
    words = [
        "--max-batch-size",
        "2",
        "--max-seq-len",
        "32",
        "--step-tokens",
        "4",
        "--sm",
        "120",
        "--sm",
        "89",
    ]
    assert main(["rtx-build", str(tiny), "--model", str(TINY), "-o", str(out), *words]) == 0
    return out


def test_engines_are_described(engine: Path) -> None:
    manifest = read_manifest(engine, "engine")
    assert (manifest.kind, manifest.target) == ("rtx", {"sms": [89, 120]})
    assert manifest.results == {"gates": {"network": "passed"}, "executed": False}
    assert manifest.options["limits"] == {"maxBatchSize": 2, "maxSeqLen": 32, "stepTokens": 4}
    assert {"engine/decoder.plan", "engine/engine.json", "gates.json"} <= set(manifest.files or ())
    described = json.loads((engine / "engine/engine.json").read_text())
    assert (described["cacheLength"], described["targets"]) == (35, [89, 120])
    require_unchanged(engine)


def test_a_changed_plan_is_found(engine: Path, tmp_path: Path) -> None:
    shutil.copytree(engine, tmp_path / "engine")
    path = tmp_path / "engine/engine/decoder.plan"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EnginixError, match=r"decoder\.plan"):
        require_unchanged(tmp_path / "engine")


def make_machine(sm: int, driver: str = "590.44.01") -> Machine:
    return Machine(driver, "13.0", (MachineGpu(0, "a GPU", "GPU-1", sm, 32 << 30, 31 << 30),), "nvml")


@pytest.mark.parametrize(
    "machine,runs",
    [(make_machine(89), True), (make_machine(120), True), (make_machine(86), False),
     (make_machine(90), False), (make_machine(89, "570.1"), False), (None, False)],
)  # fmt: skip
def test_machines_are_compared(engine: Path, machine: Machine | None, runs: bool) -> None:
    verdict = compare_with_machine(read_manifest(engine), machine)
    assert verdict.runs == runs, verdict.text()


@pytest.mark.parametrize("sms", ["89", [], ["89"], [True], {"89": 1}])
def test_targets_that_are_no_list_of_sms_are_refused(engine: Path, sms: Any) -> None:
    manifest = replace(read_manifest(engine), target={"sms": sms})
    for machine in (make_machine(89), None):
        with pytest.raises(ManifestError, match=r"target\.sms"):
            compare_with_machine(manifest, machine)


@pytest.mark.parametrize(
    ("quantization", "sm", "fix"),
    [
        (None, 90, "enginix compare MODEL --target sm90"),
        (None, 75, "enginix compare MODEL --target sm75"),
        ("FP8", 86, "enginix compare MODEL --target sm86"),
        ("FP8", 89, "build it for this GPU"),
    ],
)
def test_a_gpu_that_the_kind_never_takes_leads_to_another_kind(
    engine: Path, quantization: str | None, sm: int, fix: str
) -> None:
    built = read_manifest(engine)
    built = replace(built, target={"sms": [120]}, model={**built.model, "quantization": quantization})
    (difference,) = compare_with_machine(built, make_machine(sm)).differences
    assert difference.field == "sm" and fix in difference.do


def test_another_version_of_the_library_is_refused(engine: Path) -> None:
    require_versions(read_manifest(engine), engine, {"tensorrtRtx": "1.7.1.116"})
    with pytest.raises(Mismatch, match="tensorrtRtx"):
        require_versions(read_manifest(engine), engine, {"tensorrtRtx": "1.6.1.120"})


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (
            ["--target", "rtx-4090"],
            0,
            ["8 slots of 2,048 tokens, 16 of each a step", "no GPU, host memory 2."],
        ),
        (["--target", "rtx-4090"], 0, ["one engine is for SM 80, 86, 89, 120, 121", "was ever executed"]),
        (["--target", "h200"], 1, ["kind rtx runs on SM 80, 86, 89, 120, 121; h200 is SM 90"]),
        (["--target", "rtx-4090", "--memory", "0.02"], 1, ["smallest change", "--max-batch-size 2"]),
        (["--target", "l4", "--sequences", "2"], 2, ["kind rtx has no --sequences"]),
        (["--target", "l4", "--tensor-parallel", "2"], 2, ["kind rtx runs on one GPU"]),
        (["--target", "l4", "--kv-cache", "fp8"], 2, ["kind rtx has no FP8 KV cache"]),
        (["--target", "l4", "--dtype", "float32"], 2, ["does not compute in float32"]),
        (["--target", "l4", "--max-seq-len", "4096"], 2, ["--max-seq-len is 4096"]),
        (["--target", "l4", "--step-tokens", "64"], 0, ["8 slots of 2,048 tokens, 64 of each a step"]),
    ],
)
def test_memory_plans(
    words: list[str], status: int, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(TINY), "--kind", "rtx", *words]) == status
    output = "".join(capsys.readouterr())
    assert all(text in output for text in said), output


@pytest.mark.parametrize(
    ("architecture", "scaling", "rotation"),
    [
        ("LlamaForCausalLM", {"rope_type": "dynamic", "factor": 2.0}, "dynamic"),
        ("Phi3ForCausalLM", "longrope", "long_rope"),
        ("LlamaForCausalLM", {"rope_type": "linear", "factor": 2.0}, None),
    ],
)
def test_plan_and_compare_refuse_the_rotations_that_a_build_refuses(
    architecture: str,
    scaling: Any,
    rotation: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    more: dict[str, Any] = {"rope_scaling": scaling}
    if scaling == "longrope":
        factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
        more = {
            "rope_scaling": {"rope_type": "longrope", **factors},
            "original_max_position_embeddings": 64,
        }
    model, checkpoint = tmp_path / "model", tmp_path / "checkpoint"
    random_models.write(model, random_models.config(architecture, **sizes, **heads, **more))
    convert_model(model, checkpoint, ConvertOptions())
    said = f"the rotation {rotation} depends on a sequence's length, and an engine's is fixed"
    status = main(["plan", str(model), "--kind", "rtx", "--target", "rtx-4090"])
    planned = capsys.readouterr().out
    rows = {row.kind: row for row in compare_kinds(read_compared_model(model), "rtx-4090")}
    config = CheckpointConfig.read(checkpoint)
    if rotation is None:
        checkpoint_support.check_checkpoint_support(config, checkpoint)
        assert status == 0 and rows["rtx"].takes, planned
        return
    with pytest.raises(CheckpointError, match=said):
        checkpoint_support.check_checkpoint_support(config, checkpoint)
    assert status == 1 and said in " ".join(planned.split()), planned
    assert (rows["rtx"].takes, rows["rtx"].why) == (False, (said,))
    assert rows["reference"].takes


@pytest.mark.parametrize(
    ("named", "model", "said"),
    [
        ("OPTForCausalLM", "OPTForCausalLM", "with transformers"),
        ("GPTForCausalLM", "GPT2LMHeadModel", "with transformers"),
        ("GPTForCausalLM", "NemotronForCausalLM", "with the llmapi kind"),
        ("Qwen3MoeForCausalLM", None, "with the llmapi kind"),
    ],
)
def test_refusals_propose_llmapi_where_its_backend_has_the_class(
    tiny: Path, tmp_path: Path, named: str, model: str | None, said: str
) -> None:
    checkpoint, source = tmp_path / "checkpoint", tmp_path / "model"
    shutil.copytree(tiny, checkpoint)
    raw = json.loads((tiny / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**raw, "architecture": named}))
    source.mkdir()
    if model is not None:
        (source / "config.json").write_text(json.dumps({"architectures": [model]}))
    with pytest.raises(CheckpointError, match=f"{named} is not taken") as error:
        engine_build.build_rtx_engine(checkpoint, source, tmp_path / "engine")
    assert error.value.fix and said in error.value.fix
    # Of a quantized checkpoint transformers may not read the codes.
    (checkpoint / "config.json").write_text(
        json.dumps({**raw, "architecture": named, "quantization": {"quant_algo": "FP8"}})
    )
    with pytest.raises(CheckpointError, match=f"{named} is not taken") as error:
        engine_build.build_rtx_engine(checkpoint, source, tmp_path / "engine")
    assert error.value.fix and "with transformers" not in error.value.fix


def test_the_kv_cache_of_a_memory_plan_is_that_of_the_engine(engine: Path) -> None:
    """Every position of every slot, and the weights that the plan holds."""
    described = json.loads((engine / "engine/engine.json").read_text())
    with open_model(str(TINY)) as model:
        request = PlanRequest(kind="rtx", max_batch_size=2, max_seq_len=32)
        found = plan_memory(model, find_gpu("rtx-4090"), request)
    positions = described["slots"] * (described["maxSeqLen"] + found.limits.step_tokens - 1)
    assert found.memory.need_tokens == positions
    heads = described["layers"] * described["keyValueHeads"] * described["headSize"]
    assert found.memory.kv_token == 2 * heads * 2
    assert found.memory.weights < described["length"] < found.memory.weights + 5_000_000


def test_a_network_that_is_another_function_is_no_engine(
    trt: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = DecoderNetwork._norm
    monkeypatch.setattr(
        DecoderNetwork, "_norm", lambda self, x, name: x if name.endswith("ln_f") else norm(self, x, name)
    )
    with pytest.raises(GateError, match="gate network failed"):
        engine_build.build_rtx_engine(
            tiny, TINY, tmp_path / "engine", engine_build.RtxBuildOptions(max_batch_size=2, max_seq_len=32)
        )
    assert not (tmp_path / "engine").exists()


def test_a_checkpoint_that_changed_is_no_engine(engine: Path, tiny: Path, tmp_path: Path) -> None:
    # A row of the embedding that no sequence of the gate has: the network's answers are the same.
    shutil.copytree(tiny, tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint/rank0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2001] ^= 0x40
    weights.write_bytes(content)
    with pytest.raises(ManifestError, match=r"rank0\.safetensors changed"):
        engine_build.build_rtx_engine(
            tmp_path / "checkpoint",
            TINY,
            tmp_path / "engine",
            engine_build.RtxBuildOptions(max_batch_size=2, max_seq_len=32),
        )
    assert not (tmp_path / "engine").exists()
    with pytest.raises(ManifestError, match=r"rank0\.safetensors changed"):
        require_engine_checkpoint(engine, tmp_path / "checkpoint")


def test_a_checkpoint_without_a_manifest_is_compared_with_the_model(
    trt: Any, tiny: Path, tmp_path: Path
) -> None:
    """As TensorRT-LLM's own converter leaves it; the row of the embedding belongs to no token of the gate."""
    checkpoint, options = (
        tmp_path / "checkpoint",
        engine_build.RtxBuildOptions(max_batch_size=2, max_seq_len=32),
    )
    shutil.copytree(tiny, checkpoint)
    (checkpoint / "enginix.json").unlink()
    built, outcomes = engine_build.build_rtx_engine(checkpoint, TINY, tmp_path / "sound", options)
    assert built.results["gates"] == {"weights": "passed", "network": "passed"} and len(outcomes) == 2
    weights = checkpoint / "rank0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2001] ^= 0x40
    weights.write_bytes(content)
    with pytest.raises(GateError, match="gate weights failed"):
        engine_build.build_rtx_engine(checkpoint, TINY, tmp_path / "engine", options)
    assert not (tmp_path / "engine").exists()


# Each value of a checkpoint's configuration that this kind refuses, and what it says.
REFUSED = {
    "dtype": ({"dtype": "float32"}, "no fused attention"),
    "heads": ({"head_size": 512}, "heads of 512"),
    "odd heads": ({"head_size": 20}, "heads of 20"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is gelu"),
    "experts": ({"architecture": "Qwen3MoeForCausalLM"}, "Qwen3MoeForCausalLM is not taken"),
    "rotation": (
        {"rotary_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 1.0}},
        "rotation dynamic",
    ),
    "long rotation": ({"position_embedding_type": "long_rope"}, "rotation long_rope"),
    "KV cache": ({"quantization": {"kv_cache_quant_algo": "FP8"}}, "a KV cache in FP8"),
    "format": ({"quantization": {"quant_algo": "W4A8_AWQ"}}, "format W4A8_AWQ is not taken"),
    "ranks": ({"mapping": {"world_size": 2, "tp_size": 2}}, "2 ranks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_checkpoints(tiny: Path, case: str) -> None:
    from enginix.checkpoint.config import parse_checkpoint_config

    changes, said = REFUSED[case]
    raw = {**json.loads((tiny / "config.json").read_text()), **changes}
    with pytest.raises(CheckpointError, match=said) as error:
        checkpoint_support.check_checkpoint_support(parse_checkpoint_config(raw, "config.json"), tiny)
    assert error.value.fix and ("kind" in error.value.fix or "--dtype" in error.value.fix)
    if case == "KV cache":
        assert "convert or quantize the model without --kv-cache" in error.value.fix


def test_targets_and_limits() -> None:
    resolve = checkpoint_support.resolve_targets
    assert resolve(["NO_QUANT"], None) == ALL and resolve(["FP8", "NO_QUANT"], None) == (89, 120, 121)
    assert resolve(["NO_QUANT"], [120, 80]) == (80, 120)
    assert resolve(["NVFP4", "NO_QUANT"], None) == (120, 121)
    for formats, sm in ((["NO_QUANT"], 90), (["NO_QUANT"], 75), (["FP8"], 86), (["NVFP4"], 89)):
        with pytest.raises(UsageError, match=f"SM {sm}"):
            resolve(formats, [sm])
    limits = {"maxBatchSize": None, "maxSeqLen": None, "stepTokens": None}
    assert checkpoint_support.resolve_engine_shape(limits, 2048) == EngineShape(8, 16, 2048)
    with pytest.raises(UsageError, match="--max-seq-len is 4096"):
        checkpoint_support.resolve_engine_shape({**limits, "maxSeqLen": 4096}, 2048)
    for name, value, flag in (
        ("maxBatchSize", 100000, "--max-batch-size"),
        ("stepTokens", 5000, "--step-tokens"),
    ):
        with pytest.raises(UsageError, match=f"{flag} is {value}"):
            checkpoint_support.resolve_engine_shape({**limits, name: value}, 2048)
