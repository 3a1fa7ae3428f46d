"""A small checkpoint and model, the stand-in runtime and driver (tests/standin)."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginix.runtime import table

STANDIN = Path(__file__).parents[2] / "standin"
sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
MODEL = Path(__file__).parents[2] / "models" / "tiny-qwen3"


@pytest.fixture(scope="session")
def standin() -> Callable[[str], Any]:
    """Modules of the stand-in tensorrt_llm by name, over the contract of this checkout."""
    package = types.ModuleType("standin_tensorrt_llm")
    package.__path__ = [str(STANDIN / "tensorrt_llm")]
    package.__version__ = "0"  # type: ignore[attr-defined]
    sys.modules[package.__name__] = package
    importlib.import_module("standin_tensorrt_llm.standin").HERE = STANDIN  # type: ignore[attr-defined]
    return lambda name: importlib.import_module(f"standin_tensorrt_llm.{name}")


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("bwrap") and shutil.which("busybox")):
        pytest.skip("bubblewrap and busybox are not installed")
    out = tmp_path_factory.mktemp("standin") / "rootfs"
    runtime = table.find_runtime("trtllm-1.2.1")
    script = [str(STANDIN / "rootfs.sh"), str(out), str(runtime.version), str(runtime.site_packages)]
    subprocess.run(["bash", *script], check=True, capture_output=True)
    return out


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., Path]:
    def make(
        misbehave: str = "",
        *,
        name: str = "NVIDIA H200",
        capability: str = "9.0",
        free: int = 143000,
        version: str = "590.44.01",
        count: int = 1,
    ) -> Path:
        out = tmp_path / f"driver-{misbehave or 'well'}-{capability}-{count}-{free}-{version}"
        if not out.exists():
            words = [str(out), name, capability, "143771", str(free), version, str(count), misbehave]
            subprocess.run(["bash", str(STANDIN / "driver.sh"), *words], check=True)
        return out

    return make


@pytest.fixture
def model() -> Path:
    return MODEL


@pytest.fixture
def checkpoint(tmp_path: Path, standin: Callable[[str], Any]) -> Callable[..., Path]:
    """A checkpoint's directory with every tensor that the stand-in's loader requires, of zeros."""

    def make(ranks: int = 1, size: int = 1 << 20, **changes: Any) -> Path:
        out = tmp_path / f"checkpoint-{ranks}-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        mapping = {"world_size": ranks, "tp_size": ranks, "pp_size": 1}
        quantization = {"quant_algo": None, "kv_cache_quant_algo": None} | changes.pop("quantization", {})
        config = {
            "architecture": "Qwen3ForCausalLM",
            "dtype": "bfloat16",
            "max_position_embeddings": 2048,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "head_size": 8,
            "intermediate_size": 64,
            "vocab_size": size // 128,
            "mapping": mapping,
            "quantization": quantization,
        } | changes
        (out / "config.json").write_text(json.dumps(config))
        for rank in range(ranks):
            (out / f"rank{rank}.safetensors").write_bytes(weights(standin("standin_loader"), config, rank))
        return out

    return make


def weights(loader: Any, config: dict[str, Any], rank: int) -> bytes:
    """A safetensors file of zeros: in FP8 where the checkpoint is, otherwise in BF16."""
    expected = loader.Expected(config, rank)
    fp8 = config["quantization"]["quant_algo"] == "FP8"
    rows: dict[str, tuple[str, tuple[int, ...]]] = {n: ("BF16", s) for n, s in expected.shapes.items()}
    for name, shape in expected.linear.items():
        rows[f"{name}.weight"] = ("F8_E4M3" if fp8 else "BF16", shape)
        if fp8:
            rows |= {f"{name}.{kind}_scaling_factor": ("F32", (1,)) for kind in ("weights", "activation")}
    header, end = {}, 0
    for name, (dtype, shape) in rows.items():
        begin, end = end, end + math.prod(shape) * {"BF16": 2, "F32": 4, "F8_E4M3": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)
