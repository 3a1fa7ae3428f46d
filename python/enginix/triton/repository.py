"""Engine → Triton model repository, for each kind of engine.

Of kind ``reference``:

    <repository>/
      enginix.json                      plain files at the top are ignored by Triton
      preprocessing/{config.pbtxt,1/model.py}
      tensorrt_llm/{config.pbtxt,1/model.py}
      postprocessing/{config.pbtxt,1/model.py}
      ensemble/{config.pbtxt,1/}

Engine and tokenizer stay outside, named by absolute path: a directory at the top would be taken for a model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import enginix
from enginix import manifest
from enginix.errors import ManifestError, RepositoryError, UsageError
from enginix.files import new_directory, sha256_file
from enginix.manifest import Manifest
from enginix.triton import config, contract, llmapi, tensorrt
from enginix.triton.models.detokenizer import load_tokenizer
from enginix.triton.options import Options
from enginix.triton.validate import validate

KINDS = ("reference", "tensorrt", "llmapi")
DEFAULT_MAX_BATCH_SIZE = 8
CLASSES = {
    "preprocessing": "Preprocessing",
    "tensorrt_llm": "TensorrtLlm",
    "postprocessing": "Postprocessing",
}
# Triton's own rule for model names would allow more; these are safe in paths and URLs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class EngineFacts:
    """What a repository needs to know of an engine of kind ``reference``.

    Attributes:
        max_batch_size: the engine's limit; ``None`` where it has none.
        max_seq_len: prompt and answer together, tokens; 0 is unknown.
        end_ids: what ends a text, the default first.
        pad_id: for tensors that want one.
    """

    directory: Path
    manifest: Manifest
    max_batch_size: int | None
    max_seq_len: int
    end_ids: tuple[int, ...]
    pad_id: int

    @property
    def tokenizer(self) -> Path:
        """Directory of the tokenizer."""
        return self.directory / "tokenizer"

    @property
    def checkpoint(self) -> Path:
        """Directory of the checkpoint."""
        return self.directory / "checkpoint"


def read_engine(directory: Path) -> EngineFacts:
    """Reads an engine's manifest, limits and tokenizer settings.

    Raises:
        ManifestError: not an engine.
        RepositoryError: its checkpoint or tokenizer is missing.
    """
    directory = Path(os.path.abspath(directory))
    found = manifest.read(directory, "engine")
    tokenizer = load_tokenizer(directory / "tokenizer")
    checkpoint = _json(directory / "checkpoint" / "config.json")
    limits = found.options.get("limits")
    limits = limits if isinstance(limits, dict) else {}
    end_ids, pad_id = _special_ids(directory / "tokenizer", tokenizer)
    return EngineFacts(
        directory=directory,
        manifest=found,
        max_batch_size=_limit(limits, "max_batch_size"),
        max_seq_len=_limit(limits, "max_seq_len") or _limit(checkpoint, "max_position_embeddings") or 0,
        end_ids=end_ids,
        pad_id=pad_id,
    )


@dataclass(frozen=True)
class Parts:
    """A repository before it is written.

    Attributes:
        configs: ``ModelConfig`` message of each model.
        known: the contract that they are checked against.
        max_batch_size: the engine's limit.
        options: as the manifest records them.
        fill: writes what belongs beside the configurations.
    """

    configs: Mapping[str, Any]
    known: Mapping[str, contract.Model]
    max_batch_size: int | None
    options: dict[str, Any]
    fill: Callable[[Path], None]


def build(
    engine_directory: Path,
    out: Path,
    options: Options | None = None,
    *,
    enginix_path: Path | None = None,
    add_models: Sequence[Path] = (),
    models: tensorrt.Models | None = None,
    rootfs: Path | None = None,
) -> dict[str, Any]:
    """Writes the repository of an engine to ``out``; validated before it appears there.

    Args:
        enginix_path: directory that holds the enginix package which the models of kind ``reference`` import;
            the running one by default.
        add_models: model directories to put beside, as links.
        models: of the kinds ``tensorrt`` and ``llmapi``.
        rootfs: root file system of their runtime's image, where NVIDIA's model.py are; without it links lead
            to their place inside the image.

    Returns:
        The repository's options as its manifest has them.

    Raises:
        RepositoryError, ManifestError, UsageError: nothing is written.
    """
    directory = Path(os.path.abspath(engine_directory))
    found = manifest.read(directory, "engine")
    options, models = options or Options(), models or tensorrt.Models()
    code = Path(os.path.abspath(enginix_path or Path(enginix.__file__).parents[1]))
    if found.kind == "reference":
        if models != tensorrt.Models():
            raise UsageError(
                "options of NVIDIA's models for an engine of kind reference",
                where=str(directory),
                fix="leave them out",
            )
        parts = _reference(read_engine(directory), options, code)
    elif found.kind == "tensorrt":
        parts = _tensorrt(tensorrt.read_engine(directory, found), options, models, rootfs, code)
    elif found.kind == "llmapi":
        parts = _llmapi(directory, options, models, rootfs, code)
    else:
        raise ManifestError(
            f"kind {found.kind!r} has no Triton repository",
            where=str(directory),
            fix=f"build the engine with --kind {' or '.join(KINDS)}",
        )
    with new_directory(out) as partial:
        for name, message in parts.configs.items():
            (partial / name / "1").mkdir(parents=True)
            (partial / name / config.FILE).write_text(config.render(message), "utf-8")
        parts.fill(partial)
        for model in add_models:
            _add(partial, model)
        validate(partial, known=parts.known, max_batch_size=parts.max_batch_size)
        described = _manifest(directory, found, parts.options, add_models)
        described.write(partial)
    return described.options


def _reference(engine: EngineFacts, options: Options, code: Path) -> Parts:
    resolved = _resolved(engine, options)

    def fill(directory: Path) -> None:
        for name in CLASSES:
            (directory / name / "1" / "model.py").write_text(_shim(name), "utf-8")

    return Parts(
        configurations(engine, resolved, code),
        contract.reference(),
        engine.max_batch_size,
        asdict(resolved),
        fill,
    )


def _tensorrt(
    engine: tensorrt.TensorrtEngine,
    options: Options,
    models: tensorrt.Models,
    rootfs: Path | None,
    code: Path,
) -> Parts:
    _only(options, ("device", "max_tokens_limit"), "tensorrt")
    batch = _batch(engine.directory, engine.max_batch_size, options)
    resolved = Options(**{**asdict(options), "max_batch_size": batch})
    own = asdict(models) | {"parameters": dict(models.parameters)}
    names = {name: name for name in ("preprocessing", "postprocessing", tensorrt.BLS)}
    around = {"preprocessing": "Preprocessing", tensorrt.BLS: "Bls"} if models.chat else {}
    return Parts(
        tensorrt.configurations(engine, resolved, models, code),
        contract.tensorrt(models.datatypes(), chat=models.chat),
        engine.max_batch_size,
        {**asdict(resolved), **own},
        lambda directory: tensorrt.link_models(directory, rootfs, names, around),
    )


def _llmapi(
    engine: Path, options: Options, models: tensorrt.Models, rootfs: Path | None, code: Path
) -> Parts:
    if options != Options() or models != tensorrt.Models(decoupled=models.decoupled, chat=models.chat):
        raise UsageError(
            "the kind llmapi takes decoupled and chat only; its model batches and queues by itself",
            where=str(engine),
            fix="pass arguments of the LLM class to enginix build (--llm-arg)",
        )

    def fill(directory: Path) -> None:
        llmapi.write(
            directory / contract.EXECUTOR / "1", llmapi.model_yaml(engine, decoupled=models.decoupled)
        )
        around = {contract.EXECUTOR: "Llmapi"} if models.chat else {}
        tensorrt.link_models(directory, rootfs, {contract.EXECUTOR: "llmapi"}, around)

    chat = {"enginix_path": str(code), "tokenizer_dir": str(engine / "tokenizer")} if models.chat else None
    return Parts(
        {contract.EXECUTOR: llmapi.configuration(decoupled=models.decoupled, chat=chat)},
        contract.llmapi(chat=models.chat),
        None,
        {"decoupled": models.decoupled, "chat": models.chat},
        fill,
    )


def _only(options: Options, names: Sequence[str], kind: str) -> None:
    for name in names:
        if getattr(options, name) != getattr(Options(), name):
            raise UsageError(
                f"not of the kind {kind}", where=f"--{name.replace('_', '-')}", fix="leave it out"
            )


def _batch(directory: Path, limit: int | None, options: Options) -> int:
    batch = options.max_batch_size or min(DEFAULT_MAX_BATCH_SIZE, limit or DEFAULT_MAX_BATCH_SIZE)
    if limit is not None and batch > limit:
        raise RepositoryError(
            f"max_batch_size: {batch} is above the engine's {limit}",
            where=str(directory),
            fix=f"--max-batch-size {limit} or less",
        )
    return batch


def configurations(engine: EngineFacts, options: Options, code: Path) -> dict[str, Any]:
    """The ``ModelConfig`` message of each model; ``options`` are resolved, nothing in them is ``None``."""
    models = contract.reference()
    batch = options.max_batch_size
    assert batch is not None and options.max_tokens_limit is not None
    tokenizer = {"enginix_path": str(code), "tokenizer_dir": str(engine.tokenizer)}
    lengths = {"max_tokens_limit": str(options.max_tokens_limit), "max_seq_len": str(engine.max_seq_len)}
    end_ids = ",".join(map(str, engine.end_ids))
    return {
        "preprocessing": config.model(
            models["preprocessing"],
            max_batch_size=batch,
            instances=options.preprocessing_instances,
            preferred_batch_size=True,
            max_queue_delay_microseconds=options.max_queue_delay_microseconds,
            max_queue_size=options.max_queue_size,
            parameters=tokenizer
            | lengths
            | {
                "add_special_tokens": _bool(options.add_special_tokens),
                "end_ids": end_ids,
                "pad_id": str(engine.pad_id),
            },
        ),
        "tensorrt_llm": config.model(
            models["tensorrt_llm"],
            max_batch_size=batch,
            instances=1,
            decoupled=True,
            parameters=lengths
            | {
                "enginix_path": str(code),
                "gpt_model_type": "inflight_fused_batching",
                "gpt_model_path": str(engine.checkpoint),
                "max_beam_width": "1",
                "exclude_input_in_output": _bool(options.exclude_input_in_output),
                "cancellation_check_period_ms": "100",
                "end_ids": end_ids,
                "max_queue_size": str(options.max_queue_size),
                "device": options.device,
            },
        ),
        "postprocessing": config.model(
            models["postprocessing"],
            max_batch_size=batch,
            instances=options.postprocessing_instances,
            # With one instance, without a queue: a queue would drop the chunks of a client that has gone,
            # which fails the ensemble with its tensorrt_llm step under way; Triton 2.51 then never finishes
            # that request, and cannot exit cleanly. With several, chunks of one answer must not overtake
            # each other.
            dynamic_batching=options.postprocessing_instances > 1,
            preserve_ordering=True,
            parameters=tokenizer | {"skip_special_tokens": _bool(options.skip_special_tokens)},
        ),
        "ensemble": config.ensemble(models["ensemble"], max_batch_size=batch),
    }


def _resolved(engine: EngineFacts, options: Options) -> Options:
    batch = _batch(engine.directory, engine.max_batch_size, options)
    # A prompt has at least one token.
    most = engine.max_seq_len - 1 if engine.max_seq_len else 2**31 - 1
    limit = options.max_tokens_limit or most
    if limit > most:
        raise RepositoryError(
            f"max_tokens_limit: {limit} is above {most}; the engine's max_seq_len is {engine.max_seq_len}",
            where=str(engine.directory),
            fix=f"--max-tokens-limit {most} or less",
        )
    return Options(**{**asdict(options), "max_batch_size": batch, "max_tokens_limit": limit})


def _manifest(engine: Path, found: Manifest, options: dict[str, Any], add_models: Sequence[Path]) -> Manifest:
    return Manifest(
        artefact="triton-repository",
        name=found.name,
        kind=found.kind,
        model=found.model,
        inputs={"engine": {"name": found.name, "manifestSha256": sha256_file(engine / manifest.FILE)}},
        options={**options, "add_models": sorted(p.name for p in add_models)},
        target=found.target,
        runtime=found.runtime,
        results={key: found.results[key] for key in ("gates", "golden") if key in found.results},
    )


def _shim(name: str) -> str:
    text = resources.files("enginix.triton").joinpath("shims/model.py.txt").read_text("utf-8")
    return text.replace("@MODULE@", name).replace("@CLASS@", CLASSES[name])


def _add(directory: Path, model: Path) -> None:
    name = model.name
    if not model.is_dir() or not NAME.fullmatch(name):
        raise UsageError("not a directory with a model's name", where=f"--add-model {model}")
    if (directory / name).exists():
        raise UsageError(f"the repository has a model {name} already", where=f"--add-model {model}")
    (directory / name).symlink_to(os.path.abspath(model))


def _special_ids(directory: Path, tokenizer: Any) -> tuple[tuple[int, ...], int]:
    """End and pad ids: of generation_config.json, as transformers' generate, else the tokenizer's own."""
    generation = _json(directory / "generation_config.json", optional=True)
    settings = _json(directory / "tokenizer_config.json", optional=True)
    end = generation.get("eos_token_id")
    ends = [end] if isinstance(end, int) else end if isinstance(end, list) else []
    if not ends and (named := _named(settings.get("eos_token"), tokenizer)) is not None:
        ends = [named]
    vocabulary = tokenizer.get_vocab_size()
    for token in ends:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise RepositoryError(
                f"eos_token_id: {token!r} is not a token id (the tokenizer has {vocabulary})",
                where=str(directory / "generation_config.json"),
            )
    pad = generation.get("pad_token_id")
    if not isinstance(pad, int):
        pad = _named(settings.get("pad_token"), tokenizer)
    return tuple(ends), pad if pad is not None else (ends[0] if ends else -1)


def _named(token: Any, tokenizer: Any) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return None if found is None else int(found)


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as e:
        if optional:
            return {}
        raise RepositoryError("missing", where=str(path), fix="build the engine again: enginix build") from e
    except (OSError, ValueError, RecursionError) as e:
        raise RepositoryError(f"unreadable: {e}", where=str(path), fix="build the engine again") from e
    if not isinstance(found, dict):
        raise RepositoryError("not a JSON object", where=str(path), fix="build the engine again")
    return found


def _limit(limits: dict[str, Any], key: str) -> int | None:
    value = limits.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _bool(value: bool) -> str:
    return "true" if value else "false"
