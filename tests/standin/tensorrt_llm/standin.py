"""What the stand-in programs share: the contract, the visible GPUs, how to misbehave."""

import json
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
MARK = b"STAND-IN"
# A test without a root file system says where its driver is.
DRIVER = Path(os.environ.get("STANDIN_DRIVER", "/run/opengl-driver"))


def contract(name):
    """A file of the contract."""
    return json.loads((HERE / "contract" / f"{name}.json").read_text())


def misbehaves(how):
    """Whether the stand-in driver asks for this misbehaviour."""
    return misbehaviour()[0] == how


def misbehaviour():
    """The misbehaviour, and what stands behind a colon: a word that marks its processes."""
    try:
        how, _, mark = (DRIVER / "misbehave").read_text().strip().partition(":")
    except OSError:
        return "", ""
    return how, mark


def sms():
    """SM of each visible GPU."""
    program = DRIVER / "bin" / "nvidia-smi"
    if not program.exists():
        return []
    fields = "index,name,uuid,compute_cap,memory.total,memory.free"
    told = subprocess.run(
        [program, f"--query-gpu={fields}"], capture_output=True, text=True, check=True
    ).stdout
    return [int(line.split(", ")[3].replace(".", "")) for line in told.splitlines()]


def refuse_quantization(quantization, sm):
    """What build() of TensorRT-LLM 1.1 and 1.2 raises."""
    algorithm = quantization.get("quant_algo")
    cache = quantization.get("kv_cache_quant_algo")
    row = contract("quant_algos")["details"].get(algorithm or "NO_QUANT")
    if row is None:
        raise ValueError(f"'{algorithm}' is not a valid QuantAlgo")
    if 100 <= sm < 120 and ("RuntimeError" in row["blackwell"] or cache == "INT8"):
        what = "SmoothQuant" if "SQ" in str(algorithm) else "INT8/INT4 quantization"
        raise RuntimeError(f"{what} is not supported on SM {sm}")
    if algorithm == "NVFP4" and sm < 100:
        raise RuntimeError("FP4 Gemm not supported before Blackwell")


def shuffled(weights):
    """A safetensors file whose largest matrix of layer 1 is turned by a third of its rows."""
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    rows = [r for name, r in header.items() if ".layers.1." in name and len(r["shape"]) == 2]
    begin, end = max((r["data_offsets"] for r in rows), key=lambda at: at[1] - at[0])
    begin, end = begin + 8 + length, end + 8 + length
    cut = begin + (end - begin) // 3 // 256 * 256
    return weights[:begin] + weights[cut:end] + weights[begin:cut] + weights[end:]


def write_engine(out, checkpoint, pretrained, build_config, version):
    """An engine directory of the documented shape; its plans are a mark and the checkpoint's weights."""
    mapping = pretrained["mapping"]
    out.mkdir(parents=True, exist_ok=True)
    world = mapping["tp_size"] * mapping["pp_size"]
    for rank in range(world):
        weights = (checkpoint / f"rank{rank}.safetensors").read_bytes() if checkpoint else bytes(4096)
        if misbehaves("partial") and rank == world - 1:
            weights = bytes(100)
        if misbehaves("shuffled"):
            weights = shuffled(weights)
        (out / f"rank{rank}.engine").write_bytes(MARK + weights)
    kept = dict(pretrained, mapping={k: v for k, v in mapping.items() if k != "rank"})
    if misbehaves("leak"):
        kept["checkpoint_dir"] = str(checkpoint)
    (out / "config.json").write_text(
        json.dumps(
            {
                "version": "9.9.9" if misbehaves("version") else version,
                "pretrained_config": kept,
                "build_config": build_config,
            },
            indent=4,
        )
    )
