"""The gates of an engine of kind ``reference``, from directories to verdict and evidence."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enginix import device as devices
from enginix.errors import CheckpointError, EnginixError, UsageError
from enginix.gates import answers as kept_answers
from enginix.gates import hf, run, suite
from enginix.gates import material as materials
from enginix.gates.asking import answers_of, read_questions
from enginix.gates.outcome import Outcome
from enginix.gates.prompts import tokenize
from enginix.gates.subject import OfExecutor
from enginix.reference import config as checkpoint_config
from enginix.reference.config import CheckpointConfig
from enginix.reference.executor import Executor

FORMAT = 1


@dataclass(frozen=True)
class Case:
    """What is judged, and by what.

    Attributes:
        checkpoint: TensorRT-LLM checkpoint directory.
        tokenizer: directory of the engine's tokenizer.
        model: the Hugging Face model whose tokenizer reads the texts.
        reference: a Hugging Face model, or a directory of its answers (``enginix reference``).
        wanted: gate → bounds to change; ``None`` for the defaults.
        questions: JSON lines with ``question`` and ``answer`` in place of the pinned ones.
        device: where everything is computed.
    """

    checkpoint: Path
    tokenizer: Path
    model: Path
    reference: Path
    wanted: Mapping[str, Any] | None = None
    questions: Path | None = None
    device: str = "cpu"


def parse(text: str) -> dict[str, Any]:
    """Gates asked for, as JSON: ``{"perplexity": {"ratio": 1.02}, "smoke": {}}``.

    Raises:
        UsageError: not a JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"--gates is not JSON: {e}", fix="""--gates '{"smoke": {}}'""") from e
    if not isinstance(found, dict):
        raise UsageError(f"--gates is {found!r}, not an object", fix="""--gates '{"smoke": {}}'""")
    return found


def judge(
    case: Case, load: Callable[[], Executor] | None = None
) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    """Every wanted gate's answer, and the evidence that goes into ``gates.json``.

    Args:
        load: gives the executor, where the caller has one; it computes in float32.

    Raises:
        GateError: the reference is missing or says nothing; without it no gate passes.
        UsageError: a gate or bound that does not exist.
        CheckpointError: the checkpoint cannot be read.
        MachineError: no such device: that is no answer of any gate's.
    """
    config = checkpoint_config.read(case.checkpoint)
    wanted = suite.bounds(
        config, {gate: {} for gate in suite.default(config)} if case.wanted is None else case.wanted
    )
    if not wanted:
        return (), {"format": FORMAT, "passed": None, "gates": {}}
    devices.find(case.device)
    ready = (case.reference / kept_answers.FILE).is_file()
    load = load or functools.cache(lambda: Executor.load(case.checkpoint, case.device, "float32"))
    outcomes: tuple[Outcome, ...] = ()
    evidence: dict[str, Any] = {"format": FORMAT}
    if suite.LOGITS in wanted:
        found, told = _logits(case, wanted[suite.LOGITS].get("tolerance"), load, config)
        outcomes, evidence = found, evidence | told
    if set(wanted) - {suite.LOGITS}:
        tokenizer = hf.Tokenizer(case.reference if not ready else case.model)
        if ready:
            answers = kept_answers.read(case.reference)
            material = materials.load(
                tokenizer,
                config.vocab_size,
                config.context,
                questions=read_questions(case.questions),
            )
        else:
            answers, material = answers_of(case.reference, case.device, case.questions)

        def engine() -> suite.Engine:
            executor = load()
            return suite.Engine(OfExecutor(executor), hf.Tokenizer(case.tokenizer), executor.config)

        found, beside = suite.run(engine, tokenizer, material, answers, wanted)
        outcomes += found
        evidence |= {
            "material": {
                "sha256": material.sha256,
                "passages": len(material.passages),
                "prompts": len(material.prompts),
                "questions": len(material.questions),
                "tokens": sum(len(p.tokens) for p in material.passages),
            },
            "reference": answers.model,
            "bounds": suite.reasons(config),
            **beside,
        }
    evidence["passed"] = all(o.passed for o in outcomes)
    evidence["gates"] = {o.gate: {"passed": o.passed, **_summary(o), **o.detail} for o in outcomes}
    return outcomes, evidence


def _summary(outcome: Outcome) -> dict[str, str]:
    # The last digits of that gate's figures depend on the CPU; its evidence states bounds instead.
    return {} if outcome.gate == suite.LOGITS and outcome.passed else {"summary": outcome.summary}


def _logits(
    case: Case, tolerance: float | None, load: Callable[[], Executor], config: CheckpointConfig
) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    try:
        tokenizer = hf.Tokenizer(case.tokenizer)
        prompts = tokenize(tokenizer.encode, config.vocab_size, config.context)
        kept = _kept_logits(case, tokenizer, config)
        outcomes = run.run(case.reference, load, prompts, tolerance=tolerance, device=case.device, kept=kept)
        return outcomes, {"promptSet": {"sha256": prompts.sha256, "count": len(prompts.prompts)}}
    except CheckpointError:
        raise
    except EnginixError as e:
        return (Outcome(suite.LOGITS, False, f"could not be run: {e.what}", {"error": e.what}),), {}


def _kept_logits(
    case: Case, tokenizer: hf.Tokenizer, config: CheckpointConfig
) -> tuple[list[torch.Tensor], str] | None:
    if not (case.reference / kept_answers.FILE).is_file():
        return None
    answers = kept_answers.read(case.reference)
    material = materials.load(
        tokenizer,
        config.vocab_size,
        config.context,
        questions=read_questions(case.questions),
    )
    kept_answers.require_same(answers, material)
    return kept_answers.read_logits(case.reference, len(material.prompts)), str(answers.dtype)


def verdicts(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Gate → ``passed`` or ``failed``."""
    return {o.gate: "passed" if o.passed else "failed" for o in outcomes}
