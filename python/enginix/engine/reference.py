"""Engine of kind ``reference``: checkpoint and tokenizer, proven to compute the model's function.

<engine>/
  enginix.json     manifest: what it is, from what, gates' verdict, golden tokens
  gates.json       the gates' evidence
  report.html      the same for people
  checkpoint/      copy of the checkpoint, or a link to it
  tokenizer/       tokenizer, chat template, generation defaults
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enginix import __version__, manifest
from enginix.errors import CheckpointError, ManifestError, ModelError, UsageError
from enginix.files import check_free, dump_json, new_directory, sha256_file
from enginix.gates import hf, suite
from enginix.gates import run as gates
from enginix.gates.judge import Case, judge
from enginix.gates.outcome import Outcome
from enginix.gates.prompts import PromptSet, tokenize
from enginix.manifest import Manifest
from enginix.model import open_weights
from enginix.model.attention_window import read_context, read_windows
from enginix.model.end_tokens import KEY, read_end_tokens
from enginix.model.identity import inputs as identity
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.reference import config as checkpoint_config
from enginix.reference import layout, linear
from enginix.reference.config import CheckpointConfig
from enginix.reference.executor import Executor
from enginix.report import evidence as report
from enginix.tables import table

GOLDEN_TOKENS = 32
REQUIRES = {"torch": ">=2.6"}


@dataclass(frozen=True)
class Options:
    """How a reference engine is built.

    Attributes:
        name: of the engine; ``None`` takes the model's.
        gated: run the gates; without them the manifest says "not gated".
        link_checkpoint: link to the checkpoint instead of copying it.
        tolerance: bound of the gate ``logits`` in place of the table's.
        device: where gates and golden tokens are computed.
        gates: gate → bounds to change; ``None`` for the defaults of the number format, empty for none.
        reference: the model, or its answers, that gates compare with; ``None`` takes the model itself, which
            only works where it is not quantized.
        questions: JSON lines in place of the pinned ones.
    """

    name: str | None = None
    gated: bool = True
    link_checkpoint: bool = False
    tolerance: float | None = None
    device: str = "cpu"
    gates: Mapping[str, Any] | None = None
    reference: Path | None = None
    questions: Path | None = None


def _wanted(options: Options, config: CheckpointConfig) -> Mapping[str, Any]:
    if not options.gated:
        return {}
    wanted = options.gates
    if wanted is None:
        wanted = {gate: {} for gate in suite.default(config)}
    if options.tolerance is not None and suite.LOGITS in wanted:
        wanted = {**wanted, suite.LOGITS: {"tolerance": options.tolerance}}
    suite.bounds(config, wanted)
    if wanted and config.quantization.algorithms and options.reference is None:
        raise UsageError(
            "gates of a quantized checkpoint need the model before quantization",
            fix="--reference ORIGINAL_MODEL (or its answers: enginix reference), or --no-gates",
        )
    return wanted


def build(
    checkpoint: Path, model: Path, out: Path, options: Options | None = None
) -> tuple[Manifest, tuple[Outcome, ...]]:
    """Builds an engine directory; whole or absent.

    Args:
        checkpoint: TensorRT-LLM checkpoint directory.
        model: the Hugging Face model that it was converted from: reference of the gates, and tokenizer.
        out: directory to create.

    Raises:
        CheckpointError: a tensor is missing or misshapen (named, expected and found), or not executable here.
        ModelError: no model or tokenizer there.
        ManifestError: the checkpoint was made from another model.
        GateError: a gate failed or could not be run.
    """
    check_free(out)
    options = options or Options()
    config = checkpoint_config.read(checkpoint)
    linear.refuse_unknown_format(config, str(checkpoint / "config.json"))
    layout.check(checkpoint, config)
    for name in ("config.json", "tokenizer.json"):
        if not (model / name).is_file():
            raise ModelError(f"no {name}", where=str(model), fix="pass the Hugging Face model's directory")
    if read_context(model, config.max_position_embeddings) < config.context:
        raise CheckpointError(
            "its manifest does not say the model's sliding window, beyond which this kind computes otherwise",
            where=str(checkpoint),
            fix="convert the model with enginix convert",
        )
    inputs, ends = _inputs(checkpoint, model), read_end_tokens(model)
    tokenizer = hf.Tokenizer(model)
    prompts = tokenize(tokenizer.encode, config.vocab_size, config.context)
    wanted = _wanted(options, config)
    outcomes: tuple[Outcome, ...] = ()
    load = functools.cache(lambda: Executor.load(checkpoint, options.device, "float32"))
    with new_directory(out) as partial:
        told = gates.evidence(prompts, ())
        if wanted:
            compared = options.reference or model
            case = Case(checkpoint, model, model, compared, wanted, options.questions, options.device)
            outcomes, told = judge(case, load)
            gates.require(outcomes)
        executor = load()
        _put_checkpoint(checkpoint, partial / "checkpoint", link=options.link_checkpoint)
        copy_tokenizer_files(model, partial / "tokenizer")
        report.put(partial, options.name or manifest.name_of(model), told)
        described = Manifest(
            artefact="engine",
            name=options.name or manifest.name_of(model),
            kind="reference",
            model={**_model(config), **read_windows(model), KEY: list(ends)},
            inputs=inputs,
            options={
                "gates": {o.gate: _bound(o) for o in outcomes},
                "limits": {"max_seq_len": executor.max_length},
            },
            runtime={"id": "reference", "requires": REQUIRES},
            tools={"enginix": __version__, "torch": torch.__version__.split("+")[0]},
            results={
                "gates": {o.gate: "passed" for o in outcomes} or "not gated",
                "golden": _golden(executor, tokenizer, prompts, ends),
            },
        )
        described.write(partial)
    return described, outcomes


def _bound(outcome: Outcome) -> dict[str, Any]:
    keys = ("tolerance", *table("gates")["formats"]["NO_QUANT"]["bounds"].get(outcome.gate, {}))
    return {key: outcome.detail[key] for key in keys if key in outcome.detail}


def _inputs(checkpoint: Path, model: Path) -> dict[str, Any]:
    """Identity of both inputs.

    Raises:
        ManifestError: the checkpoint's manifest names another model than this one.
    """
    given = identity(model, open_weights(model))["model"]
    if not (checkpoint / manifest.FILE).exists():
        # Not made by enginix: its bytes are its identity.
        names = sorted(p.name for p in checkpoint.iterdir() if p.suffix in (".json", ".safetensors"))
        files = {name: {"sha256": sha256_file(checkpoint / name)} for name in names}
        return {"model": given, "checkpoint": {"files": files}}
    found = manifest.read(checkpoint, "checkpoint")
    made_from = found.inputs.get("model")
    if made_from is not None and made_from != given:
        raise ManifestError(
            f"the checkpoint was made from {_say(made_from)}, but --model is {_say(given)}",
            where=str(checkpoint),
            fix="pass the model that the checkpoint was converted from, or convert this one",
        )
    return {
        "model": given,
        "checkpoint": {"name": found.name, "manifestSha256": sha256_file(checkpoint / manifest.FILE)},
    }


def _say(identity: Any) -> str:
    if isinstance(identity, dict) and "repo" in identity:
        return f"{identity['repo']} at {identity.get('revision')}"
    return "a model with digest " + hashlib.sha256(dump_json(identity).encode()).hexdigest()[:12]


def _model(config: CheckpointConfig) -> dict[str, Any]:
    return {
        "architecture": config.architecture,
        "dtype": config.dtype,
        "layers": config.layers,
        "hiddenSize": config.hidden_size,
        "vocabSize": config.vocab_size,
        "maxPositionEmbeddings": config.max_position_embeddings,
        "quantization": config.quantization.algorithm,
        "kvCacheQuantization": config.quantization.kv_cache,
    }


def _put_checkpoint(checkpoint: Path, to: Path, *, link: bool) -> None:
    if link:
        to.symlink_to(os.path.abspath(checkpoint), target_is_directory=True)
        return
    to.mkdir()
    for path in sorted(checkpoint.iterdir()):
        if path.name in ("config.json", manifest.FILE) or path.suffix == ".safetensors":
            shutil.copyfile(path, to / path.name)


def _golden(
    executor: Executor, tokenizer: hf.Tokenizer, prompts: PromptSet, ends: tuple[int, ...]
) -> dict[str, Any]:
    """A prompt and its greedy continuation: whoever serves the engine can see whether it still says so."""
    prompt = prompts.golden
    room = executor.max_length - len(prompt.tokens)
    if room < 1:
        raise CheckpointError(
            f"a context of {executor.max_length} tokens leaves no room for the golden prompt's answer"
        )
    tokens = executor.greedy(prompt.tokens, min(GOLDEN_TOKENS, room), ends)
    return {
        "prompt": prompt.text,
        "promptTokens": list(prompt.tokens),
        "tokens": tokens,
        "text": tokenizer.decode(tokens),
        "endIds": list(ends),
        "dtype": "float32",
    }
