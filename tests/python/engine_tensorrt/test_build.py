"""`enginix build --kind tensorrt` on the stand-in runtime: what it delivers, and when it does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from enginix import manifest
from enginix.cli import main
from enginix.files import sha256_file
from enginix.kinds.llmapi.trtllm_serve import Serving, make_serve_command
from enginix.kinds.tensorrt.build import stage as stage
from enginix.manifest import Manifest
from enginix.process_group import list_descendants, read_start_time
from enginix.serve import hosts

PYTHON = Path(__file__).parents[3] / "python"


@pytest.fixture
def words(rootfs, driver, model, checkpoint, tmp_path):
    def make(*more: str, at: Path | None = None, **gpu):
        line = [
            "build",
            str(at or checkpoint()),
            "--kind",
            "tensorrt",
            "--model",
            str(model),
            "--rootfs",
            str(rootfs),
        ]
        line += ["--driver", str(driver(gpu.pop("misbehave", ""), **gpu)), "--runtime", "trtllm-1.2.1"]
        if "--target" not in more:
            line += ["--target", "h200"]
        return [*line, "-o", str(tmp_path / "engine"), *more]

    return make


def left(tmp_path: Path) -> list[str]:
    return [p.name for p in tmp_path.iterdir() if "engine" in p.name]


def test_an_engine(words, tmp_path, capsys):
    line = words(
        "--plugin", "gemm-plugin=auto", "--max-batch-size", "4", "--timing-cache-out", str(tmp_path / "t")
    )
    assert main(line) == 0
    made = manifest.read_manifest(tmp_path / "engine", "engine")
    assert (
        made.kind == "tensorrt"
        and made.target["sm"] == 90
        and made.options["plugins"]["gemmPlugin"] == "auto"
    )
    built = json.loads((tmp_path / "engine/engine/config.json").read_text())["build_config"]
    limits = made.options["limits"]
    assert built["max_batch_size"] == limits["maxBatchSize"] == 4 and limits["maxSeqLen"] == 2048
    assert (tmp_path / "engine/engine/rank0.engine").stat().st_size > 1 << 20
    assert {p.name for p in (tmp_path / "engine/tokenizer").iterdir()} >= {
        "tokenizer.json",
        "generation_config.json",
    }
    # What the image has, not what the table of runtimes allows.
    assert (made.runtime["nccl"], made.runtime["ncclSource"]) == ("2.28.9", "the image's files")
    text = (tmp_path / "engine/enginix.json").read_text()
    assert str(tmp_path) not in text and (tmp_path / "t").is_file()
    assert main(["check", str(tmp_path / "engine"), "--driver", line[line.index("--driver") + 1]]) == 0


def test_an_engine_for_nodes_of_four(words, checkpoint, tmp_path):
    """From a checkpoint, by the stand-in trtllm-build, to where serving over several machines reads it."""
    mapping = {"world_size": 8, "gpus_per_node": 4, "tp_size": 8, "pp_size": 1}
    at = checkpoint(8, size=1 << 16, mapping=mapping)
    assert main(words("--target", "h200", at=at, count=8)) == 0
    assert hosts.read_gpus_per_node(tmp_path / "engine") == 4


def test_relative_paths_as_the_documentation_has_them(words, checkpoint, model, tmp_path, monkeypatch):
    line = words(at=checkpoint())
    shutil.copytree(model, tmp_path / "model")
    line[line.index("--model") + 1] = str(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    near = [os.path.relpath(word) if word.startswith("/") else word for word in line]
    # "model" is a word of every config.json: what may not be named there is the path.
    assert "model" in near and main(near) == 0
    assert manifest.read_manifest(tmp_path / "engine").target["sm"] == 90
    assert main(["check", "engine", "--driver", near[near.index("--driver") + 1]]) == 0


def test_a_machine_with_several_kinds_of_gpu_builds_on_the_targets(words, tmp_path, monkeypatch):
    line = words()
    program = Path(line[line.index("--driver") + 1]) / "bin/nvidia-smi"
    other = '  echo "0, NVIDIA A40, GPU-a, 8.6, 46068, 46000, 590.44.01"\n'
    program.write_text(
        program.read_text().replace("  i=0\n", f"{other}  i=0\n").replace('echo "$i, ', 'echo "$((i + 1)), ')
    )
    seen = []
    run = stage.supervise_command

    def watched(sandbox, command, watch, **more):
        seen.append(sandbox.environment())
        return run(sandbox, command, watch, **more)

    monkeypatch.setattr(stage, "supervise_command", watched)
    assert main(line) == 0
    assert manifest.read_manifest(tmp_path / "engine").target["gpu"] == "NVIDIA H200"
    # CUDA's own first GPU would be the other one, or the fastest.
    assert [(e["CUDA_VISIBLE_DEVICES"], e["CUDA_DEVICE_ORDER"]) for e in seen] == [("1", "PCI_BUS_ID")]


def test_every_rank(words, checkpoint, tmp_path):
    assert main(words("--workers", "2", at=checkpoint(ranks=2), count=2)) == 0
    assert sorted(p.name for p in (tmp_path / "engine/engine").glob("*.engine")) == [
        "rank0.engine",
        "rank1.engine",
    ]


@pytest.mark.parametrize(
    ("misbehave", "said"),
    [
        ("hang", "it hangs"),
        ("oom", "the GPU's memory is exhausted"),
        ("killed", "the kernel killed it"),
        ("partial", "a partial engine"),
        ("nothing", "wrote no engine"),
        ("home", "a library writes to HOME"),
        ("leak", "contains the path of an input"),
        ("version", "the engine says TensorRT-LLM 9.9.9"),
    ],
)
def test_misbehaviour_leaves_nothing(words, tmp_path, capsys, monkeypatch, misbehave, said):
    # Short for the one that hangs; on a busy machine the others are silent that long, too.
    minutes = "0.02" if misbehave == "hang" else "10"
    line = words("--stall-minutes", minutes, "--timing-cache-out", str(tmp_path / "t"), misbehave=misbehave)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert main(line) in (3, 5)
    error = capsys.readouterr().err
    assert said in error and "fix:" in error
    assert not left(tmp_path) and not (tmp_path / "t").exists()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("misbehave", ["model-cache", "daemon"])
def test_misbehaviour_that_does_no_harm(words, tmp_path, misbehave):
    assert main(words("--timing-cache-out", str(tmp_path / "t"), misbehave=misbehave)) == 0
    assert (tmp_path / "t").is_file()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_ended_takes_everything_along(words, tmp_path, number):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PYTHON), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "enginix", *words(misbehave="hang")]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if "Building engine" in said:
                break
        below = list_descendants(process.pid)
        assert below
        process.send_signal(number)
        process.wait(300)
    deadline = time.monotonic() + 300
    while any(read_start_time(p) == t for p, t in below.items()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(read_start_time(p) == t for p, t in below.items())
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("more", "gpu", "said"),
    [
        ((), {"capability": "10.0", "name": "NVIDIA B200"}, "the target h200 is SM 90"),
        ((), {"version": "580.95.05"}, "needs driver 590.44.01 or later"),
        ((), {"free": 0}, "weights alone take"),
        (("--workers", "2"), {}, "2 workers for 1 rank"),
        (("--workers", "0"), {}, "--workers: 0 is not"),
        (("--workers", "-2"), {}, "--workers: -2 is not"),
        (("--stall-minutes", "0"), {}, "--stall-minutes: 0 is not"),
        (("--stall-minutes", "-5"), {}, "--stall-minutes: -5 is not"),
        (("--stall-minutes", "nan"), {}, "--stall-minutes: nan is not"),
        (("--max-seq-len", "4096"), {}, "more than the model's context"),
        (("--max-batch-size", "0"), {}, "--max-batch-size: 0 is not"),
        (("--max-num-tokens", "4"), {}, "less than maxBatchSize"),
        (("--max-num-tokens", str(1 << 31)), {}, "pass at most 2147483647"),
        (("--plugin", "max-output-len=5"), {}, "is gone since TensorRT-LLM 0.12.0"),
        (("--plugin", "reduce-fusion=true"), {}, "a tensor parallel size of at least 2"),
        (("--plugin", "streamingllm=true"), {}, "no longer supports it"),
        (("--plugin", "use-paged-context-fmha=false", "--max-num-tokens", "64"), {}, "not split into chunks"),
        (("--plugin", "gem-plugin=auto"), {}, "did you mean gemmPlugin"),
        (("--plugin", "gemm-plugin=int3"), {}, "nvfp4"),
        (("--plugin", "output-dir=x"), {}, "enginix writes it itself"),
        (("--runtime", "trtllm-1.3.0rc26"), {}, "NVIDIA removed the engine path"),
        (("--target", "h2000"), {}, "did you mean h200"),
        (("--timing-cache", "/nonexistent"), {}, "no such timing cache"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(words, tmp_path, capsys, more, gpu, said):
    begun = time.monotonic()
    assert main(words(*more, **gpu)) in (2, 3, 5)
    error = capsys.readouterr().err
    assert said in error and "stage: build" not in error and not left(tmp_path)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("changes", "target", "capability", "said"),
    [
        ({"quantization": {"quant_algo": "NVFP4"}}, "h200", "9.0", "NVFP4 needs SM 100 or later"),
        ({"quantization": {"quant_algo": "W4A16_AWQ"}}, "b200", "10.0", "refuses W4A16_AWQ for SM 100"),
        ({"quantization": {"quant_algo": "FP8_BLOCK_SCALES"}}, "h200", "9.0", "cannot become an engine"),
        ({"quantization": {"kv_cache_quant_algo": "INT8"}}, "b200", "10.0", "a KV cache in INT8"),
        ({"architecture": "GptOssForCausalLM"}, "h200", "9.0", "has no engine"),
        ({"quantization": {"quant_algo": "FP9"}}, "h200", "9.0", "unknown quantization"),
    ],
)  # fmt: skip
def test_support(words, checkpoint, capsys, changes, target, capability, said):
    line = words("--target", target, at=checkpoint(**changes), capability=capability, name="NVIDIA B200")
    assert main(line) == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: (c / "config.json").write_text("{"),
        lambda c: (c / "config.json").write_text("[]"),
        lambda c: (c / "config.json").write_text('{"architecture": "X"}'),
        lambda c: (c / "config.json").write_text(
            '{"architecture": "X", "dtype": "y", "mapping": {"tp_size": "two"}}'
        ),
        lambda c: (c / "config.json").write_bytes(b"\xff\xfe"),
        lambda c: (c / "rank0.safetensors").unlink(),
        lambda c: (c / "config.json").unlink(),
        lambda c: (c / "enginix.json").write_text("{}"),
    ],
)
def test_a_damaged_checkpoint(words, checkpoint, tmp_path, capsys, damage):
    at = checkpoint()
    damage(at)
    assert main(words(at=at)) == 3
    error = capsys.readouterr().err
    assert error.splitlines()[-1 if "fix" not in error else 0].startswith("error") or "error: " in error
    assert "unexpected" not in error and not left(tmp_path)


def test_a_checkpoint_of_another_model(words, checkpoint, tmp_path, capsys):
    at, other = checkpoint(), tmp_path / "model"
    made_from = {"model": {"repo": "a/b", "revision": "0" * 40}}
    manifest.Manifest("checkpoint", "c", inputs=made_from).write(at)
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "tokenizer.json").write_text("{}")
    manifest.Manifest("model", "m", inputs={"repo": "a/b", "revision": "1" * 40}).write(other)
    line = words(at=at)
    line[line.index("--model") + 1] = str(other)
    assert main(line) == 3 and "made from a/b at 000" in capsys.readouterr().err and not left(tmp_path)


def test_a_model_without_a_tokenizer(words, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    line = words()
    line[line.index("--model") + 1] = str(tmp_path / "model")
    assert main(line) == 3 and "no tokenizer" in capsys.readouterr().err and not left(tmp_path)


def test_the_wrong_image(words, tmp_path, capsys):
    line = words()
    (tmp_path / "empty").mkdir()
    line[line.index("--rootfs") + 1] = str(tmp_path / "empty")
    assert main(line) == 5 and "no tensorrt_llm in" in capsys.readouterr().err


def test_nix_sees_the_phases(words, capsys, monkeypatch):
    monkeypatch.setenv("NIX_LOG_FD", "2")
    assert main(words()) == 0
    said = [json.loads(x[5:]) for x in capsys.readouterr().err.splitlines() if x.startswith("@nix ")]
    assert [x["phase"] for x in said] == ["preflight", "build", "verify"]


def test_gates_of_the_checkpoint_are_recorded(words, checkpoint, tmp_path, capsys):
    at, gated = checkpoint(), tmp_path / "gated"
    gated.mkdir()
    manifest.Manifest("checkpoint", "c").write(at)
    identity = {"checkpoint": {"manifestSha256": sha256_file(at / "enginix.json")}}
    for kind, inputs, results in (
        ("reference", {"checkpoint": {"manifestSha256": "0" * 64}}, {"gates": {"logits": "passed"}}),
        ("tensorrt", identity, {"gates": {"logits": "passed"}}),
        ("reference", identity, {"gates": "not gated"}),
        ("reference", identity, {"gates": {"logits": "failed"}}),
        ("reference", {}, {}),
        ("reference", identity, {"gates": {}}),
    ):
        manifest.Manifest("engine", "r", kind, inputs=inputs, results=results).write(gated)
        assert main(words("--gated", str(gated), at=at)) == 3 and not left(tmp_path), (kind, inputs, results)
    # Two checkpoints without a manifest are not therefore the same.
    passed = {"gates": {"logits": "passed"}}
    manifest.Manifest("engine", "r", "reference", inputs={"checkpoint": {"files": {}}}, results=passed).write(
        gated
    )
    assert main(words("--gated", str(gated), at=checkpoint())) == 3 and not left(tmp_path)
    manifest.Manifest("engine", "r", "reference", inputs=identity, results=passed).write(gated)
    assert main(words("--gated", str(gated), at=at)) == 0
    made = manifest.read_manifest(tmp_path / "engine")
    assert made.results["gates"]["checkpoint"] == {"logits": "passed"}


def test_the_manifest_says_what_the_weights_were_calibrated_with(words, model, tmp_path):
    """Of a quantized model: its own inputs, the calibration's digest among them, and the chat template."""
    quantized = tmp_path / "quantized"
    shutil.copytree(model, quantized, ignore=shutil.ignore_patterns("enginix.json"))
    inputs = {
        "model": {"repo": "a/b", "revision": "c" * 40},
        "calibration": {"sha256": "d" * 64, "rows": 3},
    }
    Manifest("quantized-model", "q", model={"quantization": None}, inputs=inputs).write(quantized)
    line = words()
    line[line.index("--model") + 1] = str(quantized)
    assert main(line) == 0
    made = manifest.read_manifest(tmp_path / "engine", "engine")
    assert made.inputs["model"].items() >= {"artefact": "quantized-model", **inputs}.items()
    assert made.inputs["model"]["files"]["model.safetensors"] == sha256_file(quantized / "model.safetensors")
    assert (tmp_path / "engine/tokenizer/chat_template.jinja").is_file()


def test_phi3_with_a_pipeline_is_refused_before_the_build(words, checkpoint, tmp_path, capsys):
    mapping = {"world_size": 2, "tp_size": 1, "pp_size": 2}
    at = checkpoint(2, architecture="Phi3ForCausalLM", mapping=mapping)
    assert main(words(at=at, count=2)) == 2
    error = capsys.readouterr().err
    assert "no pipeline for Phi3ForCausalLM" in error and "stage: build" not in error and not left(tmp_path)


def test_a_checkpoint_without_a_tensor_ends_the_build(words, checkpoint, tmp_path, capsys):
    """As the real loader: it is not the sizes of files that it looks at."""
    at = checkpoint()
    path = at / "rank0.safetensors"
    path.write_bytes(path.read_bytes().replace(b"lm_head.weight", b"lm_hood.weight"))
    assert main(words(at=at)) == 3
    assert "lacks tensors" in capsys.readouterr().err and not left(tmp_path)


SPECULATIVE = [
    ("lookahead_decoding", {}, 2059),
    ("medusa", {"architecture": "MedusaForCausalLM", "max_draft_len": 11}, 2059),
    ("explicit_draft_tokens", {}, 2059),
    ("draft_tokens_external", {}, 2059),
    ("eagle", {"architecture": "EagleForCausalLM", "num_eagle_layers": 4}, 2063),
]


@pytest.mark.parametrize(("mode", "changes", "longest"), SPECULATIVE)
def test_a_speculative_engine(words, checkpoint, tmp_path, mode, changes, longest):
    """TensorRT-LLM adds the draft to max_seq_len; the manifest has both, servers get the engine's own."""
    draft = () if "max_draft_len" in changes else ("--plugin", "max-draft-len=11")
    line = words("--plugin", f"speculative-decoding-mode={mode}", *draft, at=checkpoint(**changes))
    assert main(line) == 0
    made = manifest.read_manifest(tmp_path / "engine", "engine")
    built = json.loads((tmp_path / "engine/engine/config.json").read_text())["build_config"]
    assert made.options["limits"]["maxSeqLen"] == built["max_seq_len"] == longest
    assert made.options["asked"]["limits"]["maxSeqLen"] == 2048
    served = make_serve_command(tmp_path / "engine", made, Serving())
    assert served[served.index("--max_seq_len") + 1] == str(longest)


CLIPPED = [
    (("--max-batch-size", "4", "--max-seq-len", "1024", "--max-num-tokens", "8192"), 8192, 4096),
    (("--profile", "latency", "--max-batch-size", "1"), 2048, 2048),
    (("--plugin", "remove-input-padding=false", "--plugin", "context-fmha=false"), 8192, 16384),
    (("--max-num-tokens", "64", "--plugin", "context-fmha=false"), 64, 2047),
    (("--max-batch-size", "1", "--max-seq-len", "16"), 16, 32),
    (("--max-batch-size", "8", "--max-num-tokens", "16"), 16, 32),
]


@pytest.mark.parametrize(("more", "asked", "effective"), CLIPPED)
def test_tokens_of_a_step_that_the_tool_changes(words, tmp_path, capsys, more, asked, effective):
    assert main(words(*more)) == 0
    made = manifest.read_manifest(tmp_path / "engine", "engine")
    assert made.options["limits"]["maxNumTokens"] == effective
    assert made.options["asked"]["limits"]["maxNumTokens"] == asked
    if asked != effective:
        assert f"maxNumTokens {asked} becomes {effective}" in capsys.readouterr().err


def test_an_engine_that_is_not_what_the_tool_makes_of_the_request(words, tmp_path, capsys, monkeypatch):
    run = stage.run_build

    def other(*args):
        outcome = run(*args)
        path = args[-1] / "config.json"
        config = json.loads(path.read_text())
        config["build_config"]["max_seq_len"] -= 1
        path.write_text(json.dumps(config))
        return outcome

    monkeypatch.setattr(stage, "run_build", other)
    assert main(words()) == 3
    assert "max_seq_len is 2047, but trtllm-build makes 2048 of this request" in capsys.readouterr().err
    assert not left(tmp_path)


@pytest.fixture
def adapter(tmp_path):
    """An adapter as PEFT saves it for a model that is here."""

    def make(**config):
        out = tmp_path / "adapter"
        out.mkdir()
        whole = {"r": 8, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "a/b"} | config
        (out / "adapter_config.json").write_text(json.dumps(whole))
        (out / "adapter_model.safetensors").write_bytes(bytes(64))
        return out

    return make


def lora(adapter, *more):
    return ("--plugin", f"lora-dir={adapter}", "--plugin", "lora-plugin=auto", *more)


def test_an_engine_with_an_adapter(words, adapter, tmp_path):
    assert main(words(*lora(adapter()))) == 0
    made = manifest.read_manifest(tmp_path / "engine")
    assert set(made.options["asked"]["plugins"]["loraDir"][0]) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize(
    ("config", "more", "said"),
    [
        ({"base_model_name_or_path": "MODEL"}, (), "contains the path of an input"),
        ({"target_modules": ["q_proj", "lm_head"]}, (), "target_modules has lm_head"),
        ({"r": 128}, (), "r is 128, above maxLoraRank 64"),
        ({"use_dora": True}, (), "set doraPlugin"),
        ({"rank_pattern": {"q_proj": 96}}, (), "r is 96, above maxLoraRank 64"),
        ({"peft_type": "IA3"}, (), "peft_type is IA3"),
        ({"bias": "lora_only"}, (), "bias is lora_only"),
        ({"modules_to_save": ["lm_head", "score"]}, (), "modules_to_save has score"),
        ({}, ("--plugin", "lora-target-modules=q_proj"), "attn_q, attn_k"),
        ({}, ("--plugin", "lora-plugin=disable"), "needs loraPlugin"),
    ],
)
def test_an_adapter_is_checked_before_the_build(words, adapter, model, tmp_path, capsys, config, more, said):
    config = {k: str(model) if v == "MODEL" else v for k, v in config.items()}
    assert main(words(*lora(adapter(**config), *more))) == 2
    error = capsys.readouterr().err
    assert said in error and "fix:" in error and "stage: build" not in error and not left(tmp_path)


@pytest.mark.parametrize("damage", [None, "{", "[]"])
def test_an_adapter_that_is_none(words, tmp_path, capsys, damage):
    (tmp_path / "adapter").mkdir()
    if damage is not None:
        (tmp_path / "adapter" / "adapter_config.json").write_text(damage)
    assert main(words(*lora(tmp_path / "adapter"))) == 2
    assert "adapter_config.json" in capsys.readouterr().err and not left(tmp_path)
    assert main(words(*lora(tmp_path / "nowhere"))) == 2
    assert "no such directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "said"),
    [(None, "no adapter_model.safetensors"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS")],
)
def test_an_adapter_without_its_weights(words, adapter, tmp_path, capsys, weights, said):
    path = adapter() / "adapter_model.safetensors"
    path.unlink()
    if weights is not None:
        path.write_bytes(weights)
    assert main(words(*lora(path.parent))) == 2
    assert said in capsys.readouterr().err and not left(tmp_path)


def test_the_lora_plugin_alone_is_refused(words, tmp_path, capsys):
    assert main(words("--plugin", "lora-plugin=auto")) == 2
    assert "it needs loraDir or loraTargetModules" in capsys.readouterr().err and not left(tmp_path)


def test_an_adapter_of_nemo(words, tmp_path):
    (tmp_path / "adapter.nemo").write_bytes(bytes(64))
    assert main(words(*lora(tmp_path / "adapter.nemo", "--plugin", "lora-ckpt-source=nemo"))) == 0
    made = manifest.read_manifest(tmp_path / "engine")
    assert list(made.options["asked"]["plugins"]["loraDir"][0]) == ["adapter.nemo"]
