"""Stand-in for trtllm-build: the contract's command line, nothing else."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import __version__
from .standin import contract, misbehaves, misbehaviour, refuse_quantization, sms, write_engine


def parser():
    """Every flag of the contract, and no other."""
    made = argparse.ArgumentParser(prog="trtllm-build", allow_abbrev=False)
    for row in contract("build_flags")["flags"]:
        names = [row["flag"], *row.get("aliases", [])]
        if row["type"] == "flag":
            made.add_argument(*names, action="store_true")
        elif row["type"] == "enum":
            made.add_argument(*names, type=str.lower, choices=row["choices"], default=argparse.SUPPRESS)
        elif row["type"] == "str+":
            made.add_argument(*names, nargs="+", default=row["default"])
        else:
            kind = int if row["type"] == "int" else str
            made.add_argument(*names, type=kind, default=row["default"], choices=row.get("choices"))
    return made


def main():
    args = parser().parse_args()
    print(f"[TensorRT-LLM] TensorRT-LLM version: {__version__} (stand-in)", flush=True)
    visible = sms()
    # As the real one: no GPU, no worker, and a ValueError of the pool.
    if min(len(visible), args.workers) <= 0:
        raise ValueError("max_workers must be greater than 0")
    checkpoint = Path(args.checkpoint_dir)
    pretrained = json.loads((checkpoint / "config.json").read_text())
    known = contract("model_map")["hf_architecture_to_trtllm_class"]
    assert pretrained["architecture"] in known, (
        f"Unsupported model architecture: {pretrained['architecture']}"
    )
    assert args.streamingllm != "enable", "streamingllm is no longer supported"
    refuse_quantization(pretrained["quantization"], visible[0])
    if visible[0] == 100:
        for name in ("gemm_swiglu_plugin", "fp8_rowwise_gemm_plugin", "low_latency_gemm_plugin"):
            if getattr(args, name) != "disable":
                raise NotImplementedError(f"{name} is not supported on SM 100")
    if args.opt_num_tokens is not None and args.multiple_profiles == "enable":
        raise RuntimeError("opt_num_tokens cannot be used with multiple profiles")
    if args.gather_context_logits and args.max_draft_len > 0:
        raise RuntimeError("gather_context_logits with max_draft_len > 0")
    if args.input_timing_cache and not Path(args.input_timing_cache).exists():
        print("[W] input timing cache does not exist, a new one is created")

    if misbehaves("nothing"):
        return 0
    if misbehaves("hang"):
        print("[I] Building engine", flush=True)
        sleep = "import time; time.sleep(100000)"
        os.execv(sys.executable, [sys.executable, "-c", sleep, f"standin_trtllm_build {misbehaviour()[1]}"])
    if misbehaves("slow"):
        for step in range(4):
            print(f"[I] tactic {step}", flush=True)
            time.sleep(1)
    if misbehaves("daemon"):
        sleep = "import time; time.sleep(4242)"
        words = [sys.executable, "-c", sleep, f"standin_daemon {misbehaviour()[1]}"]
        subprocess.Popen(words, start_new_session=True)
    if misbehaves("oom"):
        print(
            "[E] Requested amount of GPU memory (9663676416 bytes) could not be allocated.", file=sys.stderr
        )
        raise RuntimeError("CUDA out of memory. Tried to allocate 9.00 GiB")
    if misbehaves("killed"):
        print("[I] Building engine", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    build_config = {
        row["name"] if isinstance(row, dict) else row: None
        for row in contract("build_config_fields")["fields"]
    }
    for name in list(build_config):
        build_config[name] = getattr(args, name, None)
    build_config.pop("dry_run", None)
    build_config.pop("visualize_network", None)
    build_config["kv_cache_type"] = getattr(args, "kv_cache_type", "paged").upper()
    build_config["plugin_config"] = {
        row["name"]: getattr(args, row["name"], row.get("default"))
        for row in contract("plugin_config_fields")["fields"]
    }
    write_engine(Path(args.output_dir), checkpoint, pretrained, build_config, __version__)
    cache = Path("model.cache") if misbehaves("model-cache") else Path(args.output_timing_cache)
    before = Path(args.input_timing_cache).read_text() if args.input_timing_cache else ""
    cache.write_text(before + "stand-in timing cache\n")
    print("[I] Total time of building all engines: 00:00:01")
    return 0


if __name__ == "__main__":
    sys.exit(main())
