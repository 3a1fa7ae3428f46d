#!/usr/bin/env python3
"""Builds plans of kind rtx again and again, each in a process of its own, and prints their hashes and costs.

    python3 tests/gpu/rtx_rebuild.py                   # the Python of the environment rtx
    tests/gpu/wheels-rtx.sh                            # where there is a network, for a bare machine
    python3 tests/gpu/rtx_rebuild.py --rebuilds 3      # there: Python 3.12, NumPy and those wheels
    python3 tests/gpu/rtx_rebuild.py --models 0.1b,1.7b ./checkpoint

Needs no GPU, no PyTorch and no network. Models: tiny-qwen3, converted as it is for its default engine, and
random ones of the shapes of Qwen3, whose weights are the same bits on every machine. The sizes of each engine
are the default ones, its targets all that its number format allows. Status 1 where two builds of one model
differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WHEELS = HERE / "wheels-rtx"
sys.path.insert(0, str(ROOT / "python"))
# hidden_size, intermediate_size, layers, heads, vocabulary; the 0.6 and 1.7 billion are Qwen3's own shapes.
SHAPES = {
    "0.1b": (768, 2048, 12, 16, 32768),
    "0.6b": (1024, 3072, 28, 16, 151936),
    "1.7b": (2048, 6144, 28, 16, 151936),
}
MODELS = ("tiny-qwen3", *SHAPES)


def unpack_wheels(into: Path) -> None:
    """Join the parts of wheels, compare each with wheels-rtx.txt, and unpack them into a folder."""
    expected = (HERE / "wheels-rtx.txt").read_text()
    names = sorted({path.name.partition(".part-")[0] for path in WHEELS.iterdir()})
    for name in names:
        whole = into / name
        pieces = sorted(WHEELS.glob(f"{name}.part-*")) or [WHEELS / name]
        whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        digest = hashlib.sha256(whole.read_bytes()).hexdigest()
        if f"sha256:{digest}" not in expected:
            sys.exit(f"{name} is {digest}, which wheels-rtx.txt does not have: run wheels-rtx.sh again")
        with zipfile.ZipFile(whole) as wheel:
            wheel.extractall(into)
        whole.unlink()


def write_random_model(name: str, out: Path) -> None:
    """Write a random Qwen3 model in bfloat16, of numbers from 2^-7 to 2^-5 of both signs; norms are 1."""
    import numpy as np

    hidden, width, layers, heads, vocabulary = SHAPES[name]
    size, keys = 128, 8
    attention = {
        "q_proj": (heads * size, hidden),
        "k_proj": (keys * size, hidden),
        "v_proj": (keys * size, hidden),
    }
    attention |= {"o_proj": (hidden, heads * size), "q_norm": (size,), "k_norm": (size,)}
    mlp = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{part}.weight"] = (hidden,)
        shapes |= {f"{prefix}.self_attn.{part}.weight": shape for part, shape in attention.items()}
        shapes |= {f"{prefix}.mlp.{part}.weight": shape for part, shape in mlp.items()}
    shapes["model.norm.weight"] = (hidden,)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16", "head_dim": size,
        "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": vocabulary,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    }  # fmt: skip
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    position = 0
    for tensor, shape in shapes.items():
        count = 2 * int(np.prod(shape))
        offsets = [position, position + count]
        header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        position += count
    text = json.dumps(header).encode()
    # Bits of PCG64, whose stream NumPy keeps; no arithmetic of floating point.
    bits = np.random.PCG64(22)
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            count = int(np.prod(shape))
            if len(shape) == 1:
                file.write(np.full(count, 0x3F80, "<u2").tobytes())
                continue
            raw = bits.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
            # Sign, exponent 2^-7 or 2^-6, seven bits of mantissa.
            file.write(((raw & 0x80FF) | 0x3C00).astype("<u2").tobytes())


def build_once(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Describe and build one checkpoint in this process; return its hash and costs."""
    from enginix.checkpoint.config import CheckpointConfig
    from enginix.kinds.rtx import checkpoint_support
    from enginix.kinds.rtx.network.decoder import DecoderNetwork
    from enginix.kinds.rtx.plan_builder import LibraryLog, build_plan, import_tensorrt_rtx, make_logger

    config = CheckpointConfig.read(checkpoint)
    targets = checkpoint_support.resolve_targets(checkpoint_support.list_checkpoint_formats(config), None)
    limits = {"maxBatchSize": None, "maxSeqLen": None, "stepTokens": None}
    shape = checkpoint_support.resolve_engine_shape(limits, config.context)
    trt, log = import_tensorrt_rtx(), LibraryLog()
    started = time.perf_counter()
    network = DecoderNetwork(trt, make_logger(trt, log), checkpoint, shape)
    described = time.perf_counter()
    header = build_plan(network, log, targets, out)
    built = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    constants = hashlib.sha256()
    for name, array in network.writer.constants.items():
        constants.update(name.encode())
        constants.update(memoryview(array.reshape(-1).view("u1")))
    with out.open("rb") as file:
        plan = (
            hashlib.file_digest(file, "sha256")
            if sys.version_info >= (3, 11)
            else hashlib.sha256(file.read())
        )
    return {
        "plan": plan.hexdigest(),
        "constants": constants.hexdigest(),
        "bytes": header.length,
        "networkSeconds": round(described - started, 2),
        "planSeconds": round(built - described, 2),
        "processorSeconds": round(used.ru_utime + used.ru_stime, 1),
        "peakGiB": round(used.ru_maxrss / 2**20, 2),
    }


def rebuild_model(checkpoint: Path, rebuilds: int, work: Path) -> list[dict[str, Any]]:
    """Build a checkpoint several times, each in a process of its own."""
    results = []
    for _ in range(rebuilds):
        command = [sys.executable, __file__, "--one", str(checkpoint), str(work / "plan")]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout))
        (work / "plan").unlink()
    return results


def make_checkpoint(name: str, work: Path) -> Path:
    """Return the checkpoint of a model's name; a path is a checkpoint already."""
    from enginix.checkpoint.convert import ConvertOptions, convert_model

    if name not in MODELS:
        return Path(name)
    model = ROOT / "tests/models/tiny-qwen3"
    if name in SHAPES:
        model = work / f"model-{name}"
        write_random_model(name, model)
    convert_model(model, work / name, ConvertOptions())
    return work / name


def describe_machine() -> str:
    import numpy as np

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{cpu}, {os.cpu_count()} CPUs; Python {platform.python_version()}, NumPy {np.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="checkpoints to build, too")
    parser.add_argument("--models", default="tiny-qwen3,0.6b", help=f"of {', '.join(MODELS)}; '' for none")
    parser.add_argument("--rebuilds", type=int, default=2, metavar="N")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(build_once(*args.one)))
        return 0
    report: dict[str, Any] = {"machine": describe_machine(), "models": {}}
    sys.stdout.write(report["machine"] + "\n")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        if WHEELS.is_dir() and sys.version_info[:2] == (3, 12):
            (work / "site").mkdir()
            unpack_wheels(work / "site")
            sys.path.insert(1, str(work / "site"))
            os.environ["PYTHONPATH"] = str(work / "site")
        for name in [*filter(None, args.models.split(",")), *args.checkpoints]:
            results = rebuild_model(make_checkpoint(name, work), args.rebuilds, work)
            report["models"][name] = results
            hashes = {result["plan"] for result in results}
            sys.stdout.write(f"{name}: {len(results)} builds, {len(hashes)} distinct\n")
            for result in results:
                sys.stdout.write("  " + ", ".join(f"{key} {value}" for key, value in result.items()) + "\n")
            sys.stdout.flush()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    is_equal = all(len({result["plan"] for result in results}) == 1 for results in report["models"].values())
    return 0 if is_equal and report["models"] else 1


if __name__ == "__main__":
    sys.exit(main())
