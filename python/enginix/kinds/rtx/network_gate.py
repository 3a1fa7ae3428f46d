"""Gate ``network``: the network that the builder gets computes what the model computes.

The network is walked on the CPU in float32, where nothing is rounded, and in its own types. Sequences of
different lengths are taken in pieces, so that each has a prefill, a continued one, and decode steps from the
cache. The judge of an unquantized network is transformers on the Hugging Face model; of a quantized one, the
reference executor on the checkpoint, with and without the format's rounding of activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enginix.errors import EnginixError, GateError
from enginix.evaluation.judgement.logits import relative_error
from enginix.evaluation.judgement.outcome import GateOutcome, round_up_bound
from enginix.evaluation.reference_answers import hf
from enginix.kinds.rtx.checkpoint_support import list_checkpoint_formats
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.kinds.rtx.network.interpreter import NetworkInterpreter
from enginix.kinds.rtx.step_inputs import make_step_inputs
from enginix.reference.executor import Executor
from enginix.tables import load_table

NAME = "network"


@dataclass(frozen=True)
class GateSize:
    """How much of a network's work the gate does.

    Attributes:
        rows: sequences.
        decode_steps: steps of one token at the end of each.
        prompt_pieces: whole pieces of the longest prompt.
    """

    rows: int
    decode_steps: int
    prompt_pieces: int


# A large network takes seconds a step.
LARGE_PARAMETERS = 50_000_000
SMALL, LARGE = GateSize(8, 6, 3), GateSize(2, 2, 1)


@dataclass(frozen=True)
class NetworkCase:
    """A sequence of the gate: its tokens, and after how many of them each step ends."""

    tokens: tuple[int, ...]
    ends: tuple[int, ...]

    def pieces(self) -> Iterator[tuple[int, ...]]:
        start = 0
        for end in self.ends:
            yield self.tokens[start:end]
            start = end


def _cut_pieces(count: int, shape: EngineShape, first: int, decode_steps: int) -> tuple[int, ...]:
    """Return the ends of steps: a piece of ``first`` tokens, whole ones, and single tokens at the end."""
    ends, prompt = [], count - min(decode_steps, count - 1)
    end = min(first, prompt)
    while True:
        ends.append(end)
        if end >= prompt:
            break
        end = min(end + shape.step_tokens, prompt)
    return (*ends, *range(prompt + 1, count + 1))


def make_network_cases(
    prompts: Sequence[Sequence[int]], shape: EngineShape, size: GateSize
) -> tuple[NetworkCase, ...]:
    """Return sequences of different lengths and different first pieces, out of the pinned prompts."""
    cases = []
    rows, steps = min(shape.slots, size.rows), size.decode_steps
    longest = min(shape.max_seq_len, size.prompt_pieces * shape.step_tokens + steps)
    text = [token for prompt in prompts for token in prompt]
    for row in range(rows):
        # From two tokens of prompt to several whole pieces.
        shortest = min(2 + steps, longest)
        count = shortest + row * (longest - shortest) // max(1, rows - 1)
        start = row * 11 % max(1, len(text) - count)
        tokens = tuple(text[start : start + count])
        first = 1 + (row * 5) % shape.step_tokens
        cases.append(NetworkCase(tokens, _cut_pieces(len(tokens), shape, first, steps)))
    return tuple(cases)


def walk_network(
    interpreter: NetworkInterpreter, network: DecoderNetwork, cases: Sequence[NetworkCase]
) -> list[torch.Tensor]:
    """Return for each sequence logits float32 [steps, vocab_size], after each of its pieces.

    Raises:
        GateError: a layer cannot be executed.
    """
    config, shape = network.config, network.shape
    dtype = torch.float32 if interpreter.is_wide else getattr(torch, config.dtype)
    size = (len(cases), config.num_key_value_heads, shape.cache_length, config.head_size)
    caches = {
        f"{part}_{layer}": torch.zeros(size, dtype=dtype)
        for layer in range(config.num_hidden_layers)
        for part in ("key", "value")
    }
    lengths = [0] * len(cases)
    pieces = [list(case.pieces()) for case in cases]
    logits: list[list[torch.Tensor]] = [[] for _ in cases]
    for step in range(max(map(len, pieces))):
        current = {row: parts[step] for row, parts in enumerate(pieces) if step < len(parts)}
        inputs = make_step_inputs(shape, current, lengths)
        with torch.inference_mode():
            outputs = interpreter.run({**inputs, **caches})
        caches = {name: outputs[f"{name}_next"] for name in caches}
        for row, piece in current.items():
            lengths[row] += len(piece)
            logits[row].append(outputs["logits"][row])
    return [torch.stack(rows) for rows in logits]


@dataclass(frozen=True)
class GateLeg:
    """One walk of the network, and the judge's logits that it is compared with.

    Attributes:
        bound: name of its row in section ``gate`` of rtx.json.
        is_wide, rounds_codes: of :class:`NetworkInterpreter`.
    """

    bound: str
    is_wide: bool
    rounds_codes: bool = True


def list_gate_legs(network: DecoderNetwork) -> tuple[GateLeg, ...]:
    """Return the walks of a network, the strictest first."""
    dtype, algorithm = network.config.dtype, network.config.quantization.quant_algo
    if algorithm is None:
        return GateLeg("wide", True), GateLeg(dtype, False)
    codes = "Nvfp4" if "NVFP4" in list_checkpoint_formats(network.config) else "Quantized"
    return (
        GateLeg("wide", True, rounds_codes=False),
        GateLeg("wideRounded", True),
        GateLeg(f"{dtype}{codes}", False),
    )


def compute_expected_logits(
    checkpoint: Path, model: Path, cases: Sequence[NetworkCase], legs: Sequence[GateLeg]
) -> list[list[torch.Tensor]]:
    """Return for each leg what the network should give, by the judge of its number format."""
    tokens = [case.tokens for case in cases]
    if len(legs) == 2:  # not quantized
        whole = [hf.compute_hf_logits(model, tokens)] * 2
    else:
        executor = Executor.load(checkpoint, dtype="float32")
        with executor.without_rounding():
            unrounded = executor.forward(tokens)
        rounded = executor.forward(tokens)
        whole = [rounded if leg.rounds_codes else unrounded for leg in legs]
    return [
        [rows[[end - 1 for end in case.ends]] for rows, case in zip(one, cases, strict=True)] for one in whole
    ]


def judge_network(
    network: DecoderNetwork, checkpoint: Path, model: Path, prompts: Sequence[Sequence[int]]
) -> GateOutcome:
    """Return the outcome of the gate.

    Args:
        network: the one that the builder gets.
        prompts: token ids of texts, which sequences are cut from.

    Raises:
        GateError: the gate could not be run.
    """
    parameters = sum(array.size for array in network.writer.constants.values())
    size = LARGE if parameters > LARGE_PARAMETERS else SMALL
    cases, legs = make_network_cases(prompts, network.shape, size), list_gate_legs(network)
    results = []
    try:
        for leg, expected in zip(legs, compute_expected_logits(checkpoint, model, cases, legs), strict=True):
            interpreter = NetworkInterpreter(
                network.writer, is_wide=leg.is_wide, rounds_codes=leg.rounds_codes
            )
            computed = walk_network(interpreter, network, cases)
            results.append(_compare_leg(leg, computed, expected))
    except EnginixError as e:
        raise GateError(f"gate {NAME}: {e.what}", where=e.where or str(checkpoint), fix=e.fix) from e
    positions = sum(len(case.ends) for case in cases)
    summary = "; ".join(text for _, text, _ in results) + f"; {positions} positions of {len(cases)} sequences"
    detail = {"sequences": len(cases), "positions": positions, "legs": [evidence for *_, evidence in results]}
    return GateOutcome(NAME, all(passed for passed, *_ in results), summary, detail)


def _compare_leg(
    leg: GateLeg, computed: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
) -> tuple[bool, str, dict[str, Any]]:
    """Return the verdict of a leg, its line for people, and its evidence."""
    row = load_table("rtx")["gate"][leg.bound]
    errors = torch.cat([relative_error(a, b) for a, b in zip(computed, expected, strict=True)])
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(computed, expected, strict=True))
    error = float(errors.median() if row["statistic"] == "median" else errors.max())
    text = (
        f"{leg.bound}: {row['statistic']} relative error {error:.2g} ({row['tolerance']:g} allowed), most "
        f"likely token equal at {same}"
    )
    evidence = {
        "leg": leg.bound,
        **{key: row[key] for key in ("statistic", "tolerance", "reason")},
        "errorAtMost": round_up_bound(error),
    }
    # A comparison with NaN is false: only a number that is at most the bound passes.
    return error <= row["tolerance"], text, evidence
