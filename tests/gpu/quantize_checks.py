"""ModelOpt on a GPU: a Qwen3-8B-shaped model of random weights to FP8, NVFP4 and INT4-AWQ, by our own code.

Seconds of each step, peak memory of GPU and host, bytes written a second; and that the export is read back as
what was asked for. NVFP4 before Blackwell is emulated: weights are rounded as NVFP4's, no FP4 kernel runs.

Needs nvidia-modelopt beside torch and transformers. ENGINIX_LAYERS=N makes the model shallower,
ENGINIX_FORMATS=fp8,nvfp4 takes some of the formats.
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

import models
from enginix.quantize import ptq, source, verify
from enginix.quantize.formats import resolve_format

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
}
FORMATS = ("fp8", "nvfp4", "int4_awq")
ROWS, LENGTH = 128, 512
GIB = 1 << 30


def random_model(out: Path, device: str) -> Path:
    """A directory like one from the Hub: one shard a layer, so that host memory stays at a layer."""
    shape = {**QWEN3, **models.shape(models.QWEN3_8B, device)}
    shape["head_dim"] = shape.pop("head_size")
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(shape))
    hidden, wide, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    head = shape["head_dim"]
    query = shape["num_attention_heads"] * head
    key = shape["num_key_value_heads"] * head
    generator = torch.Generator(device).manual_seed(1)
    layers = int(shape["num_hidden_layers"])
    index: dict[str, str] = {}

    def shard(number: int, shapes: dict[str, tuple[object, ...]]) -> None:
        name = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        tensors = {}
        for tensor, size in shapes.items():
            values = torch.randn(size, generator=generator, device=device)
            values = 1 + values / 10 if len(size) == 1 else values / size[-1] ** 0.5
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


def _quantize(name: str, directory: Path, work: Path, device: str) -> Iterator[Row]:
    choice = resolve_format(name)
    about = source.read_source_model(directory)
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
        model = ptq.load_model(directory, device)
    with _timed(seconds, "calibrate", device):
        model = ptq.insert_quantizers(model, choice, ptq.split_batches(tokens, 8, device))
    out = work / name
    with _timed(seconds, "export", device):
        ptq.export_checkpoint(model, out)
    memory = host.stop()
    on_gpu = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
    del model
    matrices = verify.verify_export(out, choice, about)
    assert matrices == {choice.algorithm: len(about.matrices)}, matrices
    written = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    shutil.rmtree(out)
    for step, value in seconds.items():
        yield Row(f"{name}: {step}", f"{value:.1f} s", f"{tokens.size} tokens" if step == "calibrate" else "")
    yield Row(f"{name}: peak GPU memory", f"{on_gpu / GIB:.1f} GiB", f"model {about.bytes / GIB:.1f} GiB")
    yield Row(f"{name}: peak host memory", f"{memory / GIB:.1f} GiB", "without mapped files")
    bits = f"{written * 8 / about.parameters:.2f} bits a weight"
    yield Row(f"{name}: written", f"{written / GIB:.2f} GiB", bits)
    yield Row(f"{name}: written a second of export", f"{written / seconds['export'] / 1e6:.0f} MB/s")
    if name == "nvfp4" and (device == "cpu" or torch.cuda.get_device_capability(device)[0] < 10):
        yield Row("nvfp4: emulated", "fake quantization", "no FP4 kernels before SM 100")


def quantization(device: str, work: Path) -> Iterator[Row]:
    """FP8, NVFP4 and INT4-AWQ of the same random model."""
    started = time.perf_counter()
    directory = random_model(work / "model", device)
    yield Row("random model written", f"{time.perf_counter() - started:.1f} s")
    if device != "cpu":
        # ModelOpt compiles its emulation at first use; that is no part of any format's time.
        from modelopt.torch.quantization.extensions import get_cuda_ext, get_cuda_ext_fp8

        started = time.perf_counter()
        there = sum(found is not None for found in (get_cuda_ext(), get_cuda_ext_fp8()))
        taken = f"{time.perf_counter() - started:.1f} s"
        yield Row("ModelOpt's kernels compiled", taken, f"{there} of 2; without, slower paths of PyTorch")
    for name in os.environ.get("ENGINIX_FORMATS", ",".join(FORMATS)).split(","):
        yield from _quantize(name, directory, work, device)


CHECKS: dict[str, Check] = {"quantization": quantization}
