"""Gate ``network``: of every architecture and format the network equals its judge, and a fault is found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.numbers import interleave_tiles
from enginix.errors import GateError
from enginix.kinds.rtx import network_gate
from enginix.kinds.rtx.checkpoint_support import check_checkpoint_support
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.network import decoder, quantized_products
from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.kinds.rtx.network.rotation_table import make_rotation_tables
from enginix.kinds.rtx.network.writer import NetworkWriter
from enginix.kinds.rtx.plan_builder import build_plan
from enginix.tables import load_table

TINY = Path(__file__).resolve().parents[2] / "models/tiny-qwen3"
TOKENS = [[(13 * i + 5 * row) % 37 for i in range(70)] for row in range(4)]
# Golden models: biases, tied heads, an odd vocabulary, rotations, and a window that sequences exceed.
CASES = (
    *("llama-bf16", "llama-bias", "llama-odd-vocab", "llama-tied", "llama-rope-linear", "llama-rope-llama3"),
    *("mistral-bf16", "qwen2-bf16", "qwen2-tied", "qwen2-rope-yarn"),
    *("qwen3-bf16", "qwen3-tied", "qwen3-rope-yarn"),
    *("phi3-bf16", "phi3-tied-odd"),
)
FORMATS = {"FP8": "FP8", "INT8_SQ": "W8A8_SQ_PER_CHANNEL", "INT4_AWQ": "W4A16_AWQ", "NVFP4": "NVFP4"}
Describe = Callable[..., Any]


@pytest.mark.parametrize("case", CASES)
def test_networks_equal_transformers(
    golden: Path, converted: Callable[..., Path], describe: Describe, case: str
) -> None:
    model = golden / case / "hf"
    network, log = describe(converted(model, case))
    outcome = network_gate.judge_network(network, converted(model, case), model, TOKENS)
    assert outcome.passed, outcome.summary
    assert not log.errors


def test_every_architecture_is_among_the_cases() -> None:
    families = {"Qwen3ForCausalLM": "qwen3", "Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}
    families |= {"MistralForCausalLM": "mistral", "Phi3ForCausalLM": "phi3"}
    assert set(load_table("rtx")["architectures"]["taken"]) == set(families)
    assert {case.split("-")[0] for case in CASES} == set(families.values())
    taken = {"NO_QUANT", *FORMATS.values()}
    assert (
        set(load_table("rtx")["formats"]["taken"])
        == taken
        == {"NO_QUANT", *quantized_products.PRODUCT_FORMATS}
    )


@pytest.mark.parametrize("factor", [0.5, 0.75])
def test_partly_rotated_heads_equal_transformers(describe: Describe, tmp_path: Path, factor: float) -> None:
    """Heads of 32 elements, of which 16 or 24 are rotated; the builder fuses their attention."""
    sizes = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 96, "vocab_size": 64}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = random_models.config("Phi3ForCausalLM", partial_rotary_factor=factor, **sizes, **tokens)
    model = tmp_path / "model"
    tensors = random_models.write(model, config)
    narrow = {n: t if "norm" in n else (t / 8).astype(t.dtype) for n, t in tensors.items()}
    (model / "model.safetensors").write_bytes(random_models.safetensors_bytes(narrow))
    checkpoint = tmp_path / "checkpoint"
    convert_model(model, checkpoint, ConvertOptions())
    network, log = describe(checkpoint)
    check_checkpoint_support(network.config, checkpoint)
    assert (network.config.rotary_embedding_dim, network.config.head_size) == (32 * factor, 32)
    outcome = network_gate.judge_network(network, checkpoint, model, TOKENS)
    assert outcome.passed, outcome.summary
    build_plan(network, log, (80, 86, 89, 120, 121), tmp_path / "plan")


@pytest.mark.parametrize("name", FORMATS)
def test_quantized_networks_equal_the_reference_executor(
    quantized: Callable[[str], Path],
    describe: Describe,
    expected_of_format: Callable[[str], Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, expected = quantized(name), expected_of_format(name)
    monkeypatch.setattr(network_gate, "compute_expected_logits", lambda *_: expected)
    network, _ = describe(checkpoint)
    check_checkpoint_support(network.config, checkpoint)
    assert FORMATS[name] in network.config.quantization.quant_algo
    outcome = network_gate.judge_network(network, checkpoint, TINY, TOKENS)
    assert outcome.passed, outcome.summary
    codes = "Nvfp4" if name == "NVFP4" else "Quantized"
    assert [leg["leg"] for leg in outcome.detail["legs"]] == ["wide", "wideRounded", f"bfloat16{codes}"]


def test_a_quantized_matrix_of_two_is_cut(
    golden: Path, converted: Callable[..., Path], describe: Describe
) -> None:
    """FP8 of Phi-3, whose gate and up are one matrix."""
    model = golden / "phi3-fp8/hf"
    checkpoint = converted(model, "phi3-fp8")
    outcome = network_gate.judge_network(describe(checkpoint)[0], checkpoint, model, TOKENS)
    assert outcome.passed, outcome.summary


def test_float16(converted: Callable[..., Path], describe: Describe) -> None:
    checkpoint = converted(TINY, "tiny-float16", dtype="float16")
    outcome = network_gate.judge_network(describe(checkpoint)[0], checkpoint, TINY, TOKENS)
    assert outcome.passed, outcome.summary
    assert [leg["leg"] for leg in outcome.detail["legs"]] == ["wide", "float16"]


def test_sequences_have_pieces_of_every_kind() -> None:
    cases = network_gate.make_network_cases(TOKENS, EngineShape(8, 8, 60), network_gate.SMALL)
    assert len({len(case.tokens) for case in cases}) == len(cases) == 8
    for case in cases:
        assert case.ends[-1] == len(case.tokens) and sum(map(len, case.pieces())) == len(case.tokens)
        assert all(0 < len(piece) <= 8 for piece in case.pieces())
        assert [len(piece) for piece in case.pieces()][-4:] == [1] * 4
    # Whole pieces, broken ones, and logits inside of what would be one piece.
    assert {len(piece) for case in cases for piece in case.pieces()} >= {1, 2, 3, 5, 8}


# Faults. Each changes one layer of the network as it is described.


def _replace_constant(part: str, change: Callable[[Any], Any]) -> Mapping[str, Any]:
    constant = NetworkWriter.constant

    def changed(self: NetworkWriter, name: str, array: Any, exact: Any = None) -> Any:
        if name.endswith(part):
            # Of a scalar an operation makes a NumPy number.
            array, exact = (x if x is None else np.asarray(change(np.array(x))) for x in (array, exact))
        return constant(self, name, array, exact)

    return {"NetworkWriter.constant": changed}


def _double_one_weight(array: Any) -> Any:
    array[..., 3, 5] *= 2
    return array


def _swap_linears(one: str, other: str) -> Mapping[str, Any]:
    linear = DecoderNetwork._linear

    def changed(self: DecoderNetwork, x: Any, name: str, *words: Any) -> Any:
        head, _, last = name.rpartition(".")
        swapped = {one: other, other: one}.get(last, last)
        return linear(self, x, f"{head}.{swapped}" if head else name, *words)

    return {"DecoderNetwork._linear": changed}


def _skip_norm(part: str) -> Mapping[str, Any]:
    norm = DecoderNetwork._norm
    return {"DecoderNetwork._norm": lambda s, x, name: x if name.endswith(part) else norm(s, x, name)}


def _change_call(function: str, change: Callable[..., tuple[Any, ...]]) -> Mapping[str, Any]:
    """A writer's function gets other arguments than it was given."""
    original = getattr(NetworkWriter, function)
    return {f"NetworkWriter.{function}": lambda self, *words: original(self, *change(self, *words))}


def _shift_cache(self: NetworkWriter, cache: Any, update: Any, first: Any, name: str) -> tuple[Any, ...]:
    one = self.constant(f"{name}.fault", np.array([1], np.int32))
    return cache, update, self.combine(first, one, "SUM", f"{name}.shifted"), name


def _shorten(
    self: NetworkWriter, q: Any, k: Any, v: Any, mask: Any, lengths: Any, name: str
) -> tuple[Any, ...]:
    less = self.constant(f"{name}.fault", np.array([-SHORT], np.int32))
    return q, k, v, mask, self.combine(lengths, less, "SUM", f"{name}.short"), name


SHORT = 8
FAULTS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "one weight of 16,384 doubled": lambda: _replace_constant("0.attention.dense.weight", _double_one_weight),
    "one embedding doubled": lambda: _replace_constant("vocab_embedding", _double_one_weight),
    "gate and up swapped": lambda: _swap_linears("fc", "gate"),
    "norm of one layer's queries missing": lambda: _skip_norm("2.attention.q_layernorm"),
    "norm of one layer's keys missing": lambda: _skip_norm("2.attention.k_layernorm"),
    "last norm missing": lambda: _skip_norm("ln_f"),
    "epsilon 1e-5 for 1e-6": lambda: _replace_constant("epsilon", lambda a: a * 10),
    "scale of queries 3 % off": lambda: _replace_constant("attention.scale", lambda a: a * np.float32(1.03)),
    "rotation a position late": lambda: _replace_constant("rotation.cosines", lambda a: np.roll(a, 1, 0)),
    "rotation backwards": lambda: _replace_constant("rotation.sines", lambda a: -a),
    "another base of the rotation": lambda: {
        "decoder.make_rotation_tables": lambda c, n: tuple(t[:, ::-1] for t in make_rotation_tables(c, n))
    },
    "keys and values swapped": lambda: _change_call("attend", lambda s, q, k, v, *more: (q, v, k, *more)),
    "cache written a place too far": lambda: _change_call("update_cache", _shift_cache),
    "lengths short by a step": lambda: _change_call("attend", _shorten),
    "mask shows one later token": lambda: _replace_constant("mask.all.columns", lambda a: a - 1),
    "mask hides the token itself": lambda: _replace_constant("mask.all.columns", lambda a: a + 1),
    "positions not advanced by the cache": lambda: _replace_constant("step_positions", lambda a: a * 0),
    "logits of another token": lambda: _change_call(
        "gather_step", lambda s, x, last, name: (x, s.constant("fault", np.zeros((4, 1), np.int32)), name)
    ),
    "residual doubled": lambda: _change_call(
        "combine", lambda s, a, b, o, n: (a, a if n.endswith("1.attended") else b, o, n)
    ),
    "a layer's output skipped": lambda: {
        "DecoderNetwork._mlp": lambda self, x, name: self._linear(
            self._linear(x, f"{name}.fc"), f"{name}.proj"
        )
    },
    "activation of up in place of gate": lambda: _change_call(
        "sigmoid", lambda s, x, n: (s.combine(x, x, "SUM", f"{n}.fault"), n)
    ),
}
QUANTIZED_FAULTS: dict[str, tuple[str, Callable[[], Mapping[str, Any]]]] = {
    "FP8: a matrix's scale doubled": (
        "FP8", lambda: _replace_constant("1.mlp.proj.weight_scale", lambda a: a * np.float32(2))
    ),
    "FP8: a tenth of an activation's range": (
        "FP8", lambda: _replace_constant("1.mlp.proj.activation_scale", lambda a: a / np.float32(10))
    ),
    "INT8: scales of rows in another order": (
        "INT8_SQ", lambda: _replace_constant("0.attention.dense.weight_scale", lambda a: a[::-1].copy())
    ),
    "INT8: no scales of columns": (
        "INT8_SQ", lambda: _replace_constant("0.attention.dense.prequant_scale", lambda a: a * 0 + 1)
    ),
    "INT4: halves of bytes swapped": (
        "INT4_AWQ",
        lambda: {"quantized_products.pack_int4_columns": lambda c: _swap_halves(PACK(c))},
    ),
    "INT4: scales of blocks a column late": (
        "INT4_AWQ", lambda: _replace_constant("2.mlp.proj.weight_scale", lambda a: np.roll(a, 1, -1))
    ),
    "NVFP4: halves of bytes swapped": (
        "NVFP4", lambda: _change_call("constant_of_halves", lambda s, n, p, t: (n, _swap_halves(p), t))
    ),
    "NVFP4: scales of blocks a column late": (
        "NVFP4", lambda: _replace_constant("2.mlp.proj.weight_scale", lambda a: np.roll(a, 1, -1))
    ),
    "NVFP4: scales of blocks in tiled order": (
        "NVFP4",
        lambda: _replace_constant("2.mlp.proj.weight_scale", _order_in_tiles),
    ),
    "NVFP4: unit of a matrix's scales inverted": (
        "NVFP4", lambda: _replace_constant("1.mlp.proj.weight_unit", lambda a: np.float32(1) / a)
    ),
    "NVFP4: unit of activations' scales a tenth": (
        "NVFP4", lambda: _replace_constant("activation_scale", lambda a: a / np.float32(10))
    ),
}  # fmt: skip
PACK = quantized_products.pack_int4_columns
PLACES = {
    "NetworkWriter": NetworkWriter,
    "DecoderNetwork": DecoderNetwork,
    "decoder": decoder,
    "quantized_products": quantized_products,
}


def _order_in_tiles(scales: Any) -> Any:
    tiled = interleave_tiles(scales.tobytes(), scales.shape[-1])
    return np.frombuffer(tiled, np.uint8).reshape(scales.shape).view(scales.dtype)


def _swap_halves(packed: Any) -> Any:
    return packed >> 4 | packed << 4


def _patch(monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Any]) -> None:
    for where, value in changes.items():
        place, name = where.split(".")
        monkeypatch.setattr(PLACES[place], name, value)


@pytest.fixture(scope="module")
def expected(tiny: Path, describe: Describe) -> Any:
    """transformers' logits, once for all faults of the unquantized network."""
    network, _ = describe(tiny)
    cases = network_gate.make_network_cases(TOKENS, network.shape, network_gate.SMALL)
    return network_gate.compute_expected_logits(tiny, TINY, cases, network_gate.list_gate_legs(network))[:1]


@pytest.fixture(scope="module")
def expected_of_format(quantized: Callable[[str], Path], describe: Describe) -> Callable[[str], Any]:
    """The reference executor's logits, once for all faults of a format."""

    @functools.cache
    def compute(name: str) -> Any:
        network, _ = describe(quantized(name))
        cases = network_gate.make_network_cases(TOKENS, network.shape, network_gate.SMALL)
        legs = network_gate.list_gate_legs(network)
        return network_gate.compute_expected_logits(quantized(name), TINY, cases, legs)

    return compute


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(
    tiny: Path, describe: Describe, expected: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _patch(patch, FAULTS[fault]())
        network, log = describe(tiny)
    # A fault that the library refuses by itself would prove nothing of the gate.
    assert not log.errors
    # The strictest leg finds each.
    legs = network_gate.list_gate_legs(network)[:1]
    monkeypatch.setattr(network_gate, "list_gate_legs", lambda _: legs)
    monkeypatch.setattr(network_gate, "compute_expected_logits", lambda *_: expected)
    if fault == "mask hides the token itself":
        # The first token attends to nothing: a softmax of nothing.
        with pytest.raises(GateError, match="NaN"):
            network_gate.judge_network(network, tiny, TINY, TOKENS)
        return
    outcome = network_gate.judge_network(network, tiny, TINY, TOKENS)
    assert not outcome.passed
    assert outcome.detail["legs"][0]["errorAtMost"] > 5e-5, outcome.summary


@pytest.mark.parametrize("fault", QUANTIZED_FAULTS)
def test_faults_of_quantized_networks_are_found(
    quantized: Callable[[str], Path],
    describe: Describe,
    expected_of_format: Callable[[str], Any],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounding of activations is in no wide leg; of the other faults each is found by the strictest leg."""
    name, make = QUANTIZED_FAULTS[fault]
    with monkeypatch.context() as patch:
        _patch(patch, make())
        network, log = describe(quantized(name))
    assert not log.errors
    leg = 1 if "activation" in fault else 0
    legs, expected = network_gate.list_gate_legs(network), expected_of_format(name)
    monkeypatch.setattr(network_gate, "list_gate_legs", lambda _: legs[leg : leg + 1])
    monkeypatch.setattr(network_gate, "compute_expected_logits", lambda *_: expected[leg : leg + 1])
    outcome = network_gate.judge_network(network, quantized(name), TINY, TOKENS)
    assert not outcome.passed, outcome.summary
