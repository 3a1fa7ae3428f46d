"""The gates of an engine in its own runtime: pure, from what it said and what the reference said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import EnginixError, GateError, UsageError
from enginix.gates import answers as kept_answers
from enginix.gates import hf, outside_engine, outside_quality, outside_said, quality
from enginix.gates.judge import FORMAT
from enginix.gates.material import same_tokens
from enginix.gates.outcome import Outcome
from enginix.gates.outside_ask import ask, ask_of, material_of
from enginix.gates.outside_said import Recorded, Said
from enginix.manifest import Manifest
from enginix.tables import table

GATES = ("smoke", "greedy", "agreement", "perplexity", "task", "context", "invariance")
OF_CHECKPOINTS = ("logits", "coverage")
GOLDEN = 32  # tokens that the manifest holds


@dataclass(frozen=True)
class Case:
    """What is judged, and by what.

    Attributes:
        engine: whose manifest and tokenizer are looked at.
        said: what it said (said.json, said.safetensors).
        model: the Hugging Face model whose tokenizer reads the texts.
        reference: the reference's answers (``enginix reference``).
        wanted: gate → bounds to change; ``None`` for the kind's defaults.
        questions: JSON lines in place of the pinned questions, as they were asked.
    """

    engine: Path
    said: Path
    model: Path
    reference: Path
    wanted: Mapping[str, Any] | None = None
    questions: Path | None = None


def kind_row(kind: str | None) -> Mapping[str, Any]:
    """The table's row of a kind.

    Raises:
        UsageError: a kind that its own runtime does not execute.
    """
    kinds: Mapping[str, Any] = table("gates")["kinds"]
    if kind is None or not isinstance(kinds.get(kind), dict):
        raise UsageError(f"an engine of kind {kind} is not judged by what it said elsewhere")
    return dict(kinds[kind])


def default(made: Manifest) -> tuple[str, ...]:
    """The gates of an engine that asks for none."""
    row = kind_row(made.kind)
    scores = made.options.get("plugins", {}).get("gatherContextLogits") is True
    return (*row["default"], *(row["withContextLogits"] if scores else ()))


def format_of(made: Manifest) -> str:
    """The row of default bounds: the coarsest number format of an engine's weights and cache."""
    rows = list(table("gates")["formats"])
    weights = made.model.get("quantization") or "NO_QUANT"
    # A mixture names no row of its own: what its coarsest part may lose.
    row = weights if weights in rows else rows[-1]
    cache = "FP8" if made.model.get("kvCacheQuantization") else "NO_QUANT"
    return max((row, cache), key=rows.index)


def bounds(made: Manifest, wanted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each wanted gate its bounds: the table's for the number format, changed by what is asked.

    Raises:
        UsageError: no such gate or bound, or a bound that is no positive number.
    """
    rows: Mapping[str, Any] = table("gates")["formats"][format_of(made)]["bounds"]
    out = {}
    for gate, asked in wanted.items():
        if gate in OF_CHECKPOINTS:
            raise UsageError(
                f"gate {gate} is of checkpoints, and a compiled engine has none to look at",
                fix="gate its checkpoint: enginix gate CHECKPOINT, or an engine of kind reference",
            )
        if gate not in GATES:
            raise UsageError(f"no gate {gate!r} for this kind", fix=f"there are: {', '.join(GATES)}")
        known = {"top1": rows["agreement"]["top1"]} if gate == "greedy" else dict(rows.get(gate, {}))
        known |= {"tie": kind_row(made.kind)["tie"]} if gate == "invariance" else {}
        if not isinstance(asked, Mapping):
            raise UsageError(f"gate {gate} is {asked!r}", fix=f'an object: {{"{gate}": {{}}}}')
        for key, value in asked.items():
            if key not in known:
                raise UsageError(
                    f"gate {gate} has no bound {key!r}", fix=f"it has: {', '.join(known) or 'none'}"
                )
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise UsageError(f"bound {key} of gate {gate} is {value!r}", fix="a positive number")
        out[gate] = {**known, **asked}
    return out


def wanted_bounds(made: Manifest, wanted: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """:func:`bounds` of what is asked; ``None`` for the defaults."""
    return bounds(made, {gate: {} for gate in default(made)} if wanted is None else wanted)


def judge(case: Case) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    """Every wanted gate's answer, and the evidence that goes into ``gates.json``.

    Nothing is raised for what the engine said: what keeps a gate from an answer is its answer.

    Raises:
        GateError: the reference's answers are missing, or to other questions.
        UsageError: a gate or bound that does not exist.
        ManifestError: not an engine.
    """
    made = manifest.read(case.engine, "engine")
    wanted = wanted_bounds(made, case.wanted)
    if not wanted:
        return (), {"format": FORMAT, "passed": None, "gates": {}}
    material, tokenizer = material_of(case.model, case.questions)
    asked = ask_of(case.model, material, tokenizer)
    answers = kept_answers.read(case.reference)
    kept_answers.require_same(answers, material)
    evidence: dict[str, Any] = {
        "format": FORMAT,
        "kind": made.kind,
        "material": {
            "sha256": material.sha256,
            "passages": len(material.passages),
            "prompts": len(material.prompts),
            "questions": len(material.questions),
            "tokens": sum(len(p.tokens) for p in material.passages),
        },
        "reference": answers.model,
        "bounds": {"format": format_of(made), "reason": table("gates")["formats"][format_of(made)]["reason"]},
    }
    names = [name for name in GATES if name in wanted]
    outcomes: list[Outcome] = []
    try:
        outside_engine.require(case.engine, case.said)
        said = outside_said.read(case.said)
        if said.kind != made.kind:
            raise GateError(f"the answers are of an engine of kind {said.kind}, not {made.kind}")
        outside_said.require_same(said, asked)
        own = hf.Tokenizer(_tokenizer(case.engine, case.model, made))
        same_tokens(own, tokenizer, material)
    except Exception as e:
        outcomes = [_failed(name, e) for name in names]
    else:
        evidence |= {"runtime": said.by, "absent": said.absent}
        tie = wanted.get("invariance", {}).get("tie", kind_row(made.kind)["tie"])
        recorded: Any = Recorded(said, asked, tie)
        gates: dict[str, Callable[[dict[str, Any]], Outcome]] = {
            "smoke": lambda b: quality.smoke(recorded, material, answers, own, b),
            "greedy": lambda b: outside_quality.greedy(said, asked, answers, b),
            "agreement": lambda b: _agreement(said, answers, b),
            "perplexity": lambda b: _perplexity(said, answers, b),
            "task": lambda b: quality.task(recorded, material, answers, own, b),
            "context": lambda b: quality.context(recorded, material, answers, own, b),
            "invariance": lambda b: outside_quality.invariance(said, asked, answers.ends, tie, b),
        }
        for name in names:
            try:
                outcomes.append(gates[name](dict(wanted[name])))
            except Exception as e:
                outcomes.append(_failed(name, e))
    evidence["passed"] = all(o.passed for o in outcomes)
    evidence["gates"] = {o.gate: {"passed": o.passed, "summary": o.summary, **o.detail} for o in outcomes}
    return tuple(outcomes), evidence


def golden(case: Case) -> dict[str, Any] | None:
    """The golden prompt's answer, which servers compare before they say that they are ready.

    What it says alone and in company, as far as no two tokens are about as likely: there a server may say the
    other one. ``None`` where nothing is left, or the prompt does not fit the engine.

    Raises:
        GateError: there are no answers.
    """
    said, asked = outside_said.read(case.said), ask(case.model, case.questions)
    outside_said.require_same(said, asked)
    alone, batch = said.runs["alone"][asked.golden], said.runs["batch"][asked.golden]
    if alone is None or batch is None:
        return None
    pairs = zip(alone.tokens[:GOLDEN], batch.tokens, strict=False)
    tokens = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    following = said.next.get(asked.golden)
    if following is not None:
        gaps = (following.logs[: len(tokens), 0] - following.logs[: len(tokens), 1]).tolist()
        close = (n for n, gap in enumerate(gaps) if not gap > kind_row(said.kind)["tie"])
        tokens = tokens[: next(close, len(tokens))]
    return {"promptTokens": list(asked.prompts[asked.golden].tokens), "tokens": tokens} if tokens else None


def _tokenizer(engine: Path, model: Path, made: Manifest) -> Path:
    # Edge-LLM's engines carry no tokenizer that transformers reads: its runtime reads the model's.
    return engine / "tokenizer" if made.kind != "edgellm" else model


def _agreement(said: Said, answers: kept_answers.Answers, bound: dict[str, Any]) -> Outcome:
    own, kl, theirs = outside_quality.scored(said, answers)
    return quality.agreement(own, kl, theirs, bound)


def _perplexity(said: Said, answers: kept_answers.Answers, bound: dict[str, Any]) -> Outcome:
    own, _, theirs = outside_quality.scored(said, answers)
    return quality.perplexity(own, theirs, bound)


def _failed(gate: str, e: Exception) -> Outcome:
    said = e.what if isinstance(e, EnginixError) else f"{type(e).__name__}: {e}"
    return Outcome(gate, False, f"could not be run: {said}", {"error": said})
