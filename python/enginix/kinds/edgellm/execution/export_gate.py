"""Gate ``export``: a graph computes the model's logits, the export's and the direct builder's.

The graph is executed on pinned random tokens: sequences of several lengths together, then cached steps of
one token each. It is executed twice: in float32 with smooth quantizers, where the recipe must be the model's
within a tight bound, and in the graph's own types, where no value may overflow and the difference must be
that of rounding. What the model says is computed by transformers (:mod:`model_logits`) in a process of its
own, which runs beside the exporter.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import enginix
from enginix import process
from enginix.errors import GateError, ModelError
from enginix.kinds.edgellm.execution.graph_runner import GraphRunner, list_plugin_nodes
from enginix.kinds.edgellm.execution.plugin_nodes import FLOAT8, Array
from enginix.kinds.edgellm.execution.rope_table import make_rope_table, read_exported_rope
from enginix.kinds.edgellm.expected_tensors import TABLE
from enginix.kinds.edgellm.graph import Graph
from enginix.kinds.edgellm.graph_contract import PAGE
from enginix.kinds.edgellm.source import ExportSource
from enginix.kinds.edgellm.values import Expected
from enginix.model import TensorInfo, read_header
from enginix.model.jsonfile import read_object
from enginix.model.mapped_tensors import map_tensor
from enginix.tables import load_table

NAME = "export"
LOGITS_MODULE = "enginix.kinds.edgellm.execution.model_logits"
MODES = ("smooth", "rounded", "half")  # of model_logits, which this process does not import: it needs torch
LENGTHS = (1, 6, 40)  # of the prompts that are read together
LONG_PROMPT = 200  # of the last prompt, where the model is small
SMALL = 1 << 25  # elements of a model that costs little time: all its weights together
LONGEST = 320  # tokens that the gate reads of one sequence at most
STEPS = 2  # cached steps after each prompt
BEYOND = 8  # tokens beyond a window


@dataclass(frozen=True)
class ModelAnswers:
    """What the model says to the gate's questions: logits [sequence, position, vocabulary] of each mode."""

    smooth: Array
    rounded: Array
    half: Array


@dataclass(frozen=True)
class GateQuestions:
    """What both sides are asked: token sequences, of which the last STEPS are read one by one."""

    sequences: tuple[tuple[int, ...], ...]

    @property
    def prompts(self) -> list[int]:
        """Lengths of the parts that are read at once."""
        return [len(s) - STEPS for s in self.sequences]


def choose_questions(
    vocab_size: int, windows: Sequence[int | None], positions: int, *, is_small: bool = False
) -> GateQuestions:
    """Return pinned random tokens, one sequence beyond the smallest window that LONGEST allows."""
    window = min((w for w in windows if w), default=0)
    longest = LONG_PROMPT if is_small else LENGTHS[-1]
    if window > 0 and window + BEYOND <= LONGEST:
        longest = max(longest, window + BEYOND)
    lengths = [min(n, max(1, positions - STEPS)) for n in (*LENGTHS[:-1], longest)]
    generator = np.random.Generator(np.random.PCG64(18))
    draw = [generator.integers(0, vocab_size, n + STEPS).tolist() for n in lengths]
    return GateQuestions(tuple(map(tuple, draw)))


class ExecutedModel:
    """A graph as a runtime executes it: embedding table, rotation table, paged cache, graph.

    Args:
        directory: of the export's or the engine's ``config.json``.
        table: embedding table.
    """

    def __init__(
        self, directory: Path, graph: Graph, table: TensorInfo, architecture: str, *, rounded: bool
    ) -> None:
        config = read_object(directory / "config.json")
        self.table = table
        self.runner = GraphRunner(graph, rounded=rounded)
        self.float = np.dtype(np.float16 if rounded else np.float32)
        self.graph, self.config = graph, config
        self.rope = read_exported_rope(config, architecture, str(directory / "config.json"))
        # The runtime rotates what the export says, also where the model's class would ignore it.
        self.rotated = int(config["head_dim"] * config.get("partial_rotary_factor", 1.0))

    def embed(self, tokens: Sequence[int]) -> Array:
        rows = Expected(self.table, "FLOAT16")
        return np.concatenate([rows.rows(t, t + 1) for t in tokens]).view(np.float16).astype(self.float)

    def answer(self, questions: GateQuestions) -> list[Array]:
        """Return logits [positions, vocabulary] of each sequence: its prompt at once, then its steps."""
        sequences, prompts = questions.sequences, questions.prompts
        caches, pages = self._make_caches(questions)
        past = [0] * len(sequences)
        lengths = prompts
        rows: list[list[Array]] = [[] for _ in sequences]
        for _ in range(STEPS + 1):
            parts = [s[p : p + n] for s, p, n in zip(sequences, past, lengths, strict=True)]
            outputs = self.runner.run({**caches, **self._make_feeds(parts, past, pages)})
            logits = outputs["logits"]
            begin = 0
            for number, part in enumerate(parts):
                rows[number].append(logits[begin : begin + len(part)])
                begin += len(part)
            caches = {name: outputs[name.replace("past", "present")] for name in caches}
            past = [p + n for p, n in zip(past, lengths, strict=True)]
            lengths = [1] * len(sequences)
        return [np.concatenate(parts) for parts in rows]

    def _make_caches(self, questions: GateQuestions) -> tuple[dict[str, Array], Array]:
        """Return empty caches, and a page table that spreads the sequences' pages over the pool."""
        needed = [-(-len(s) // PAGE) for s in questions.sequences]
        total, most = sum(needed), max(needed)
        order = np.random.Generator(np.random.PCG64(7)).permutation(total).tolist()
        table = np.zeros((len(needed), 2, most), np.int32)
        for number, count in enumerate(needed):
            mine = [order.pop() for _ in range(count)]
            table[number, 0, :count] = mine
            table[number, 1, :count] = [page + total for page in mine]
        heads, size = self.config["num_key_value_heads"], self.config["head_dim"]
        is_fp8 = self.config.get("kv_cache_dtype") == "fp8" and self.runner.rounded
        dtype = FLOAT8 if is_fp8 else self.float
        names = [n for n in self.graph.inputs if n.startswith("past_key_values_")]
        return {n: np.zeros((2, total, PAGE, heads, size), dtype) for n in names}, table

    def _make_feeds(
        self, parts: Sequence[Sequence[int]], past: Sequence[int], pages: Array
    ) -> dict[str, Array]:
        lengths = np.array([len(p) for p in parts], np.int32)
        positions = np.concatenate([np.arange(p, p + len(part)) for p, part in zip(past, parts, strict=True)])
        physical = int(lengths.sum())
        known = {
            "inputs_embeds": self.embed([t for part in parts for t in part]),
            "rope_rotary_cos_sin": make_rope_table(self.rope, self.rotated, positions),
            "positions": positions.astype(np.int32),
            "query_start_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            "query_lengths": lengths,
            "past_lengths": np.array(past, np.int32),
            "attention_sequence_lengths": np.array(past, np.int32) + lengths,
            "state_indices": np.arange(len(parts), dtype=np.int32),
            "execution_phase_marker": np.zeros(1, np.int32),
            "context_sequence_count_carrier": np.zeros(len(parts), np.int32),
            "kv_page_table": pages,
            "logits_indices": np.arange(physical, dtype=np.int64),
        }
        missing = [n for n in self.graph.inputs if n not in known and not n.startswith("past_key_values_")]
        if missing:
            raise GateError(f"the graph has the input {missing[0]}, which the gate does not know")
        return {name: value for name, value in known.items() if name in self.graph.inputs}


def check_fp8_table(llm: Path, table: TensorInfo) -> bool:
    """Check an FP8 embedding table against the model's, if the export has one; tell whether it has.

    Raises:
        GateError: an element is further from the model's than FP8 E4M3 rounds: 1/16, or half its least step.
    """
    exported = read_header(llm / "embedding.safetensors").tensors
    stored, scales = exported["embedding"], exported.get("embedding_scale")
    if stored.dtype != "F8_E4M3" or scales is None:
        return False
    codes, factors = map_tensor(stored), map_tensor(scales)
    for begin, bits in Expected(table, "FLOAT").blocks():
        exact = bits.view(np.float32)
        part = slice(begin, begin + len(exact))
        factor = np.repeat(factors[part], exact.shape[1] // factors.shape[1], axis=1)
        error = np.abs(codes[part].astype(np.float32) * factor - exact)
        if not (error <= np.abs(exact) / 16 + factor * 2.0**-9).all():
            raise GateError(f"the FP8 embedding table has other rows than the model's, from row {begin}")
    return True


def relative_errors(computed: Array, reference: Array) -> Array:
    """Return |computed - reference| / |reference - its mean| at each position, as the gate ``logits`` does.

    Raises:
        GateError: shapes differ, a value is not finite, or the reference's logits are all equal.
    """
    if computed.shape != reference.shape:
        raise GateError(f"logits of shape {list(computed.shape)}, the model's are {list(reference.shape)}")
    a, b = computed.astype(np.float64), reference.astype(np.float64)
    for name, value in (("the graph's", a), ("the model's", b)):
        if not np.isfinite(value).all():
            raise GateError(f"{name} logits hold NaN or infinity")
    scale = np.linalg.norm(b - b.mean(-1, keepdims=True), axis=-1)
    if not (scale > 0).all():
        raise GateError("the model's logits are all equal at some position")
    return np.asarray(np.linalg.norm(a - b, axis=-1) / scale)


def choose_source_questions(source: ExportSource) -> GateQuestions:
    model = source.model
    elements = sum(math.prod(t.shape) for t in source.weights.tensors.values())
    return choose_questions(
        model.vocab_size, model.windows, model.max_position_embeddings, is_small=elements <= SMALL
    )


@contextlib.contextmanager
def ask_model(
    source: ExportSource, work: Path, environment: dict[str, str]
) -> Iterator[Callable[[], ModelAnswers]]:
    """Start to ask the model in a process of its own.

    Args:
        work: an empty directory for questions and answers.

    Yields:
        A function that waits for the answers; it raises ModelError if transformers cannot compute them.
    """
    questions = choose_source_questions(source)
    tokens, out = work / "tokens.json", work / "logits.npy"
    tokens.write_text(json.dumps(questions.sequences))
    package = str(Path(enginix.__file__).parents[1])
    model = os.path.abspath(source.directory)
    command: list[str | Path] = [sys.executable, "-m", LOGITS_MODULE, model, tokens, out]
    settings = {**environment, "PYTHONPATH": package, "OMP_WAIT_POLICY": "PASSIVE"}
    with process.start_program(command, env=settings, cwd=work) as wait:

        def read_answers() -> ModelAnswers:
            done = wait()
            if done.returncode != 0 or not out.exists():
                last = process.read_last_line(done.stderr, f"status {done.returncode}").strip()[:300]
                raise ModelError(
                    f"transformers cannot compute the model's logits: {last}",
                    where=source.directory,
                    fix="the gate export needs them; see that transformers loads this model",
                )
            return ModelAnswers(*np.load(out))

        yield read_answers


def _state_decade(value: float) -> float:
    """Round up to a power of ten, at least 1e-4: the last digits differ by CPU, and evidence does not."""
    return float(f"1e{max(-4, math.ceil(math.log10(max(value, 1e-12))))}")


def _compare(computed: Sequence[Array], reference: Array) -> tuple[Array, tuple[int, int]]:
    """Return the errors of all positions, and the sequence and position of the largest."""
    errors = [relative_errors(a, b[: len(a)]) for a, b in zip(computed, reference, strict=True)]
    worst = max(range(len(errors)), key=lambda n: float(errors[n].max()))
    return np.concatenate(errors), (worst, int(errors[worst].argmax()))


def judge_export(llm: Path, graph: Graph, source: ExportSource, answers: ModelAnswers) -> dict[str, Any]:
    """Execute an export, and hold its logits to the model's; see :func:`_judge_graph`."""
    with _naming_the_gate():
        has_fp8_table = check_fp8_table(llm, source.weights.tensors[TABLE])
    exported = read_header(llm / "embedding.safetensors").tensors["embedding"]
    table = source.weights.tensors[TABLE] if has_fp8_table else exported
    embedding = "FP8, checked apart" if has_fp8_table else "executed"
    return _judge_graph(llm, graph, table, source, answers) | {"graph": "export", "embedding": embedding}


def judge_direct(engine: Path, graph: Graph, source: ExportSource, answers: ModelAnswers) -> dict[str, Any]:
    """Execute the direct builder's graph, and hold its logits to the model's; see :func:`_judge_graph`.

    Args:
        engine: what the builder wrote over the recorder.
    """
    table = source.weights.tensors[TABLE]
    evidence = _judge_graph(engine, graph, table, source, answers)
    return evidence | {"graph": "direct", "embedding": "the model's"}


@contextlib.contextmanager
def _naming_the_gate() -> Iterator[None]:
    try:
        yield
    except GateError as e:
        fix = e.fix or load_table("gates")["gates"][NAME]["fix"]
        raise GateError(f"gate {NAME} failed: {e.what}", where=e.where, fix=fix) from e


@_naming_the_gate()
def _judge_graph(
    directory: Path, graph: Graph, table: TensorInfo, source: ExportSource, answers: ModelAnswers
) -> dict[str, Any]:
    """Return evidence for the manifest, the same in each run.

    Raises:
        GateError: the gate failed, or the graph cannot be executed.
    """
    row, questions = load_table("gates")["gates"][NAME], choose_source_questions(source)
    bounds = row["bounds"]["NO_QUANT" if source.quantization is None else "quantized"]
    architecture, lengths = source.model.architecture, [len(s) for s in questions.sequences]
    executed = ExecutedModel(directory, graph, table, architecture, rounded=False)
    errors, (sequence, position) = _compare(executed.answer(questions), answers.smooth)
    # A comparison with NaN is false: only a number that is at most the bound passes.
    if not errors.max() <= bounds["function"]:
        raise GateError(
            f"logits differ from the model's by {errors.max():.2g} (token {position + 1} of "
            f"{lengths[sequence]}), {bounds['function']:g} allowed"
        )
    executed = ExecutedModel(directory, graph, table, architecture, rounded=True)
    rounded, _ = _compare(executed.answer(questions), answers.rounded)
    half = [logits[:n] for logits, n in zip(answers.half, lengths, strict=True)]
    floor, _ = _compare(half, answers.rounded)
    spread, expected = (float(np.sqrt(np.square(e).mean())) for e in (rounded, floor))
    allowed = max(bounds["roundingLeast"], bounds["rounding"] * expected)
    if not spread <= allowed:
        raise GateError(
            f"in float16, logits differ from the model's by {spread:.2g}; rounding the inputs of its "
            f"matrices makes {expected:.2g}, and {allowed:.2g} is allowed"
        )
    windows = {w for w in source.model.windows if w}
    return {
        "measure": row["measure"],
        "bounds": dict(bounds),
        "reason": row["reason"],
        "prompts": questions.prompts,
        "cachedSteps": STEPS,
        "layers": source.model.num_layers,
        "windowsExecuted": sorted(w for w in windows if w < max(lengths)),
        "windowsComparedOnly": sorted(w for w in windows if w >= max(lengths)),
        "plugins": list_plugin_nodes(graph.nodes),
        "errorAtMost": _state_decade(float(errors.max())),
        "errorInFloat16AtMost": _state_decade(spread),
    }
