"""Stand-in for trtllm-build: the contract's command line, nothing else."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import __version__, standin_effects, standin_loader
from .standin import contract, misbehaves, misbehaviour, sms, write_engine


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
            made.add_argument(*names, nargs="+", default=row["default"], choices=row.get("choices"))
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
    if (pretrained.get("quantization") or {}).get("quant_algo") == "NVFP4" and visible[0] < 100:
        raise RuntimeError("FP4 Gemm not supported before Blackwell")
    build_config, plugins = standin_effects.configure(args, visible[0])
    standin_effects.check_architecture(pretrained["architecture"], plugins)
    mapping = pretrained.get("mapping") or {}
    for rank in range(mapping.get("tp_size", 1) * mapping.get("pp_size", 1)):
        found = standin_loader.header(checkpoint / f"rank{rank}.safetensors")
        standin_loader.check_tensors(pretrained, rank, found)
    standin_effects.build(args, pretrained, build_config, plugins, visible[0])
    standin_effects.construct(pretrained, plugins)
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

    build_config["plugin_config"] = plugins
    build_config["lora_config"] = {
        "lora_dir": args.lora_dir or [],
        "lora_ckpt_source": args.lora_ckpt_source,
        "max_lora_rank": args.max_lora_rank,
        "lora_target_modules": args.lora_target_modules or [],
    }
    write_engine(Path(args.output_dir), checkpoint, pretrained, build_config, __version__)
    cache = Path("model.cache") if misbehaves("model-cache") else Path(args.output_timing_cache)
    before = Path(args.input_timing_cache).read_text() if args.input_timing_cache else ""
    cache.write_text(before + "stand-in timing cache\n")
    print("[I] Total time of building all engines: 00:00:01")
    return 0


if __name__ == "__main__":
    sys.exit(main())
