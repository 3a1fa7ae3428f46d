"""ModelOpt on a GPU: a Qwen3-8B-shaped model of random weights to FP8, NVFP4 and INT4-AWQ, by our own code.

Seconds of each step, peak memory of GPU and host, bytes written a second; and that the export is read back as
what was asked for. NVFP4 before Blackwell is emulated: weights are rounded as NVFP4's, no FP4 kernel runs.

Needs nvidia-modelopt beside torch and transformers. ENGINIX_LAYERS=N makes the model shallower.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import modelopt.torch.quantization  # noqa: F401 - a machine without it skips these checks, by name
import numpy as np
import torch
from reference_checks import Check, Row
from safetensors.torch import save_file

from enginix.console import Heartbeat
from enginix.quantize import ptq, source, verify
from enginix.quantize.formats import resolve

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
}
ROWS, LENGTH = 128, 512
GIB = 1 << 30


def _shape(device: str) -> dict[str, object]:
    shape = {**SHAPE, **(SMALL if device == "cpu" else {})}
    if "ENGINIX_LAYERS" in os.environ:
        shape["num_hidden_layers"] = int(os.environ["ENGINIX_LAYERS"])
    return shape


def random_model(out: Path, device: str) -> Path:
    """A directory like one from the Hub: one shard a layer, so that host memory stays at a layer."""
    shape = _shape(device)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(shape))
    hidden, wide, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    head = shape["head_dim"]
    query = shape["num_attention_heads"] * head  # type: ignore[operator]
    key = shape["num_key_value_heads"] * head  # type: ignore[operator]
    generator = torch.Generator(device).manual_seed(1)
    layers = int(shape["num_hidden_layers"])  # type: ignore[call-overload]
    index: dict[str, str] = {}

    def shard(number: int, shapes: dict[str, tuple[object, ...]]) -> None:
        name = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        tensors = {}
        for tensor, size in shapes.items():
            values = torch.randn(size, generator=generator, device=device)  # type: ignore[call-overload]
            values = 1 + values / 10 if len(size) == 1 else values / size[-1] ** 0.5  # type: ignore[operator]
            tensors[tensor] = values.to(torch.bfloat16).cpu()
            index[tensor] = name
        save_file(tensors, out / name, {"format": "pt"})

    for layer in range(layers):
        at = f"model.layers.{layer}"
        shard(layer, {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_norm.weight": (head,),
            f"{at}.self_attn.k_norm.weight": (head,),
            f"{at}.self_attn.q_proj.weight": (query, hidden),
            f"{at}.self_attn.k_proj.weight": (key, hidden),
            f"{at}.self_attn.v_proj.weight": (key, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, query),
            f"{at}.mlp.gate_proj.weight": (wide, hidden),
            f"{at}.mlp.up_proj.weight": (wide, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, wide),
        })  # fmt: skip
    ends = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    shard(layers, {**ends, "model.norm.weight": (hidden,)})
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return out


class Host:
    """The process's resident memory, sampled: its peak since it was made."""

    def __init__(self) -> None:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        page = resource.getpagesize()
        while not self._end.wait(0.1):
            fields = Path("/proc/self/statm").read_text().split()
            # Shared pages are the mapped weights: cache, which the kernel takes back when it needs it.
            self.peak = max(self.peak, (int(fields[1]) - int(fields[2])) * page)

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self.peak


@contextmanager
def _timed(seconds: dict[str, float], what: str, device: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if device != "cpu":
        torch.cuda.synchronize()
    seconds[what] = time.perf_counter() - started


def _quantize(name: str, directory: Path, work: Path, device: str) -> list[Row]:
    choice = resolve(name)
    about = source.read(directory)
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, int(about.config["vocab_size"]), (ROWS, LENGTH), dtype=np.int32)
    if device == "cpu":
        tokens = tokens[:8, :64]
    seconds: dict[str, float] = {}
    host = Host()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with _timed(seconds, "load", device):
        model = ptq.load(directory, device)
    with _timed(seconds, "calibrate", device):
        model = ptq.quantize(model, choice, ptq.batches(tokens, 8, device), Heartbeat())
    out = work / name
    with _timed(seconds, "export", device):
        ptq.export(model, out)
    memory = host.stop()
    on_gpu = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
    del model
    matrices = verify.verify(out, choice, about)
    assert matrices == {choice.algorithm: len(about.matrices)}, matrices
    written = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    shutil.rmtree(out)
    rows = [
        Row(f"{name}: {step}", f"{value:.1f} s", f"{tokens.size} tokens" if step == "calibrate" else "")
        for step, value in seconds.items()
    ]
    rows += [
        Row(f"{name}: peak GPU memory", f"{on_gpu / GIB:.1f} GiB", f"model {about.bytes / GIB:.1f} GiB"),
        Row(f"{name}: peak host memory", f"{memory / GIB:.1f} GiB", "without mapped files"),
        Row(
            f"{name}: written",
            f"{written / GIB:.2f} GiB",
            f"{written * 8 / about.parameters:.2f} bits a weight",
        ),
        Row(f"{name}: written a second of export", f"{written / seconds['export'] / 1e6:.0f} MB/s"),
    ]
    if name == "nvfp4" and (device == "cpu" or torch.cuda.get_device_capability(device)[0] < 10):
        rows.append(Row("nvfp4: emulated", "no FP4 kernels here", "before SM 100 no GPU has them"))
    return rows


def quantization(device: str, work: Path) -> list[Row]:
    """FP8, NVFP4 and INT4-AWQ of the same random model."""
    directory = random_model(work / "model", device)
    rows = []
    if device != "cpu":
        # ModelOpt compiles its emulation at first use; that is no part of any format's time.
        from modelopt.torch.quantization.extensions import precompile

        started = time.perf_counter()
        precompile()
        rows.append(Row("ModelOpt's kernels compiled", f"{time.perf_counter() - started:.1f} s", "once"))
    for name in ("fp8", "nvfp4", "int4_awq"):
        rows += _quantize(name, directory, work, device)
    return rows


CHECKS: dict[str, Check] = {"quantization": quantization}
