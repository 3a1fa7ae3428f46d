"""Engines of kind ``rtx``: a plan by NVIDIA's builder, of a network that was verified before.

<engine>/
  enginix.json     manifest: inputs, sizes, target SMs, verdict of the gate, digest of each file
  gates.json       evidence of the gate network
  report.html      the evidence for people
  engine/          decoder.plan, and engine.json: names and sizes of its tensors
  tokenizer/       tokenizer, chat template, generation defaults
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from enginix import __version__, manifest
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.inputs import identify_checkpoint_inputs
from enginix.digests import SourceWatch
from enginix.errors import ModelError
from enginix.evaluation.judgement import model_weights, suite
from enginix.evaluation.judgement import run as gates
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers.prompts import tokenize_prompts
from enginix.files import dump_json, write_text
from enginix.integrity import list_content, require_unchanged
from enginix.kinds.rtx import checkpoint_support
from enginix.kinds.rtx.engine_description import FILE, PLAN_FILE, PLAN_FOLDER, EngineDescription
from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.kinds.rtx.network_gate import judge_network
from enginix.kinds.rtx.plan_builder import LibraryLog, build_plan, import_tensorrt_rtx, make_logger
from enginix.manifest import Manifest
from enginix.model.attention_window import read_windows
from enginix.model.end_tokens import END_TOKENS_KEY, read_end_tokens
from enginix.model.jsonfile import read_architecture, read_object, refuse_other_artefact
from enginix.model.tokenizer_files import copy_tokenizer_files, require_fast_tokenizer
from enginix.output_path import require_absent
from enginix.reference import layout
from enginix.reference.config import read_executor_config
from enginix.reference.executor_config import ExecutorConfig
from enginix.report import evidence
from enginix.tables import load_table
from enginix.work_directory import new_directory

LIMITS = ("maxBatchSize", "maxSeqLen", "stepTokens")


@dataclass(frozen=True)
class RtxBuildOptions:
    """Options of a build.

    Attributes:
        name: name of the engine; None takes the model's.
        targets: SMs; None takes all that the number format allows.
        max_batch_size, max_seq_len, step_tokens: sizes; None takes the table's default.
    """

    name: str | None = None
    targets: tuple[int, ...] | None = None
    max_batch_size: int | None = None
    max_seq_len: int | None = None
    step_tokens: int | None = None


def build_rtx_engine(
    checkpoint: Path, model: Path, out: Path, options: RtxBuildOptions | None = None
) -> tuple[Manifest, tuple[GateOutcome, ...]]:
    """Build an engine directory; it is complete or absent.

    The network is verified by the gate ``network``, and then handed to NVIDIA's builder. Nothing executes the
    plan: that takes a GPU of its targets. The gate ``weights`` compares a checkpoint that has no digests of
    its files with the model.

    Args:
        checkpoint: TensorRT-LLM checkpoint directory of one rank.
        model: the Hugging Face model that it was converted from: judge of the gate, and tokenizer.
        out: directory to create.

    Raises:
        CheckpointError: this kind does not take the checkpoint, or it is not whole.
        ModelError: model or tokenizer are missing.
        ManifestError: the checkpoint changed since it was made, or was made from another model.
        UsageError: a target or a limit is refused.
        MachineError: TensorRT for RTX is not installed.
        GateError: the checkpoint is not the model's, or the network does not compute what the model computes.
        PlanError: the builder refused the network, or its plan is not what was asked for.
    """
    require_absent(out)
    options = options or RtxBuildOptions()
    watch = SourceWatch(checkpoint, model)
    config = CheckpointConfig.read(checkpoint)
    has_config = (model / "config.json").is_file()
    architecture = read_architecture(read_object(model / "config.json")) if has_config else None
    checkpoint_support.check_checkpoint_support(config, checkpoint, architecture)
    described = read_executor_config(checkpoint)
    layout.check_rank_files(checkpoint, described)
    formats = checkpoint_support.list_checkpoint_formats(config)
    targets = checkpoint_support.resolve_targets(formats, options.targets)
    given = dict(zip(LIMITS, (options.max_batch_size, options.max_seq_len, options.step_tokens), strict=True))
    shape = checkpoint_support.resolve_engine_shape(given, config.context)
    refuse_other_artefact(model)
    if not has_config:
        raise ModelError("no config.json", where=model, fix="pass the Hugging Face model's directory")
    require_fast_tokenizer(model)
    require_unchanged(checkpoint)
    inputs, ends = identify_checkpoint_inputs(checkpoint, model), read_end_tokens(model)
    trt, log = import_tensorrt_rtx(), LibraryLog()
    prompts = tokenize_prompts(hf.TransformersTokenizer(model).encode, config.vocab_size, config.context)
    name = options.name or manifest.read_artefact_name(model)
    outcomes = _judge_unlisted_weights(checkpoint, model, described)
    with new_directory(out) as partial:
        network = DecoderNetwork(trt, make_logger(trt, log), checkpoint, shape)
        tokens = [prompt.tokens for prompt in prompts.prompts]
        outcomes = (*outcomes, judge_network(network, checkpoint, model, tokens))
        gates.require_gates_passed(outcomes)
        plan = partial / PLAN_FOLDER / PLAN_FILE
        (partial / PLAN_FOLDER).mkdir()
        header = build_plan(network, log, targets, plan)
        description = EngineDescription(
            **asdict(shape),
            layers=network.config.num_hidden_layers,
            key_value_heads=network.config.num_key_value_heads,
            head_size=network.config.head_size,
            vocab_size=network.config.vocab_size,
            dtype=network.config.dtype,
            plan=plan,
            **asdict(header),
        )
        write_text(partial / PLAN_FOLDER / FILE, dump_json(description.as_json()))
        copy_tokenizer_files(model, partial / "tokenizer")
        evidence.write_evidence_files(partial, name, gates.build_gate_evidence(prompts, outcomes))
        limits = dict(zip(LIMITS, (shape.slots, shape.max_seq_len, shape.step_tokens), strict=True))
        watch.require_unchanged()
        engine_manifest = Manifest(
            artefact="engine",
            name=name,
            kind="rtx",
            model={**described.describe(), **read_windows(model), END_TOKENS_KEY: list(ends)},
            inputs=inputs,
            options={"limits": limits},
            target={"sms": list(targets)},
            runtime={
                "id": f"rtx-{header.version}",
                "tensorrtRtx": header.version,
                "driverFloor": load_table("rtx")["driverFloor"]["value"],
            },
            tools={"enginix": __version__, "tensorrtRtx": header.version},
            # Explicitly not of the engine: only a GPU of its targets executes it.
            results={"gates": {outcome.gate: "passed" for outcome in outcomes}, "executed": False},
        ).write(partial)
    return engine_manifest, outcomes


def _judge_unlisted_weights(
    checkpoint: Path, model: Path, described: ExecutorConfig
) -> tuple[GateOutcome, ...]:
    """Compare every tensor of a checkpoint that has no digests of its files; none of another one.

    The gate ``network`` asks some tokens: a row of the embedding that is wrong may belong to none of them.

    Raises:
        GateError: a tensor is not the model's.
    """
    if list_content(checkpoint):
        return ()
    bounds = suite.resolve_checkpoint_bounds(described, {model_weights.NAME: {}})[model_weights.NAME]
    outcome = model_weights.judge_weights(checkpoint, {"the model": model}, bounds)
    gates.require_gates_passed([outcome])
    return (outcome,)
