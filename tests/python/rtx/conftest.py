"""NVIDIA's builder from the environment `rtx`, in this process, and checkpoints to build."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import environments
import tiny_model
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.kinds.rtx.engine_build import RtxBuildOptions, build_rtx_engine
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.kinds.rtx.plan_builder import LibraryLog, import_tensorrt_rtx, make_logger

one_thread = tiny_model.one_thread
# Modules beside these tests, and beside those of checkpoints.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "checkpoint")]
ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests/models/tiny-qwen3"
# Sequences longer than the windows and rotations of the golden models, in pieces of 8 tokens.
SHAPE = EngineShape(4, 8, 60)

Describe = Callable[..., tuple[DecoderNetwork, LibraryLog]]


@pytest.fixture(scope="session")
def trt() -> Any:
    """The bindings; of the environment, all other wheels are this one's."""
    try:
        site = environments.environment("rtx") / "lib/python3.11/site-packages"
    except environments.MissingEnvironment as error:
        pytest.skip(str(error))
    sys.path.append(str(site))
    return import_tensorrt_rtx()


@pytest.fixture(scope="session")
def describe(trt: Any) -> Describe:
    """Describes a checkpoint as a network, with the log of its builder."""

    def make(checkpoint: Path, shape: EngineShape = SHAPE) -> tuple[DecoderNetwork, LibraryLog]:
        log = LibraryLog()
        return DecoderNetwork(trt, make_logger(trt, log), checkpoint, shape), log

    return make


@pytest.fixture(scope="session")
def golden() -> Path:
    """Directory of the golden models."""
    from golden import root

    return root()


@pytest.fixture(scope="session")
def converted(made_once: Callable[..., Path]) -> Callable[..., Path]:
    """Checkpoints of one rank; each made once."""

    def make(model: Path, name: str, **options: Any) -> Path:
        return made_once(f"rtx-{name}", lambda out: convert_model(model, out, ConvertOptions(**options)))

    return make


@pytest.fixture(scope="session")
def tiny(converted: Callable[..., Path]) -> Path:
    return converted(TINY, "tiny")


@pytest.fixture(scope="session")
def quantized(made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """Checkpoints of tiny-qwen3 quantized by ModelOpt; each made once."""

    def make(name: str) -> Path:
        out = made_once(f"rtx-{name}", lambda out: tiny_model.quantize(TINY, name, out, texts=1))
        return out / "checkpoint"

    return make


@pytest.fixture(scope="session")
def shallow(made_once: Callable[..., Path], quantized: Callable[[str], Path]) -> Callable[[str], Path]:
    """The first layer of a quantized checkpoint, for what the builder makes of every layer."""

    def make(name: str) -> Path:
        def cut(out: Path) -> None:
            out.mkdir()
            raw = json.loads((quantized(name) / "config.json").read_text())
            (out / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 1}))
            (out / "rank0.safetensors").symlink_to(quantized(name) / "rank0.safetensors")

        return made_once(f"rtx-shallow-{name}", cut)

    return make


@pytest.fixture(scope="session")
def served(trt: Any, tiny: Path, made_once: Callable[..., Path]) -> Path:
    """An engine of tiny-qwen3 for a server's slots, each of 128 tokens: every step reads them whole."""

    def make(out: Path) -> None:
        build_rtx_engine(tiny, TINY, out, RtxBuildOptions(name="tiny-qwen3", max_seq_len=128))

    return made_once("rtx-served", make)
