"""Convert an engine of kind ``tensorrt`` to NVIDIA's repository: the C++ backend and NVIDIA's Python models.

    postprocessing                                    its model.py is a link into the runtime's image
    preprocessing, tensorrt_llm_bls                   the link is nvidia_model.py; model.py adds messages
    tensorrt_llm                                      backend tensorrtllm; 1/ is empty
    ensemble                                          1/ is empty

``ensemble`` and ``tensorrt_llm_bls`` are two entries to the same models. The BLS decodes all tokens of an
answer again with each chunk (``accumulate_tokens``), so streaming through it loses no space and breaks no
character; NVIDIA's ensemble decodes each chunk alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from enginix.errors import RepositoryError
from enginix.manifest import Manifest
from enginix.model.attention_window import read_engine_windows
from enginix.model.jsonfile import positive_or_none, read_object
from enginix.tables import load_table
from enginix.triton import config, contract
from enginix.triton.options import RepositoryOptions
from enginix.triton.parameters import TRUE, as_text, check_parameters
from enginix.wording import list_known

BLS = "tensorrt_llm_bls"
# decoding_mode → value of trtllm-build's --speculative_decoding_mode for the engine.
SPECULATIVE = {
    "medusa": "medusa",
    "lookahead": "lookahead_decoding",
    "redrafter": "explicit_draft_tokens",
    "eagle": "eagle",
}
# Tokenizer classes without a default end token.
GENERIC = (None, "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
DEFAULTS = {"kv_cache_free_gpu_mem_fraction": "0.9", "batch_scheduler_policy": "guaranteed_no_evict"}


@dataclass(frozen=True)
class TensorrtEngine:
    """Properties of an engine of kind ``tensorrt`` that a repository needs.

    Attributes:
        max_batch_size, max_beam_width, max_seq_len: the engine's limits; ``None`` if unknown.
        longer_prompts: the limits allow prompts longer than the tokens of a step.
        paged_context: built with paged-context FMHA, which KV-cache reuse and chunked context need; ``None``
            if unknown.
        lora: built with the LoRA plug-in.
        speculative: mode of speculative decoding that it was built for, in trtllm-build's terms; ``None``
            without speculative decoding.
        weight_streaming: a part of its weights can stay in host memory.
    """

    directory: Path
    manifest: Manifest
    max_batch_size: int | None
    max_beam_width: int | None
    max_seq_len: int | None
    longer_prompts: bool
    paged_context: bool | None
    lora: bool
    speculative: str | None
    weight_streaming: bool


def read_tensorrt_engine(directory: Path, engine_manifest: Manifest) -> TensorrtEngine:
    """Read the engine's properties from its manifest.

    Raises:
        RepositoryError: engine or tokenizer is missing, or the tokenizer has no end token.
    """
    for part in ("engine/config.json", "tokenizer"):
        if not (directory / part).exists():
            raise RepositoryError("missing", where=str(directory / part), fix="build the engine again")
    _check_end_token(directory / "tokenizer")
    sections = (engine_manifest.options.get(name) for name in ("limits", "plugins"))
    limits, plugins = (section if isinstance(section, dict) else {} for section in sections)
    paged, mode = plugins.get("usePagedContextFmha"), plugins.get("speculativeDecodingMode")
    prompt, step = (positive_or_none(limits.get(name)) for name in ("maxInputLen", "maxNumTokens"))
    return TensorrtEngine(
        directory,
        engine_manifest,
        positive_or_none(limits.get("maxBatchSize")),
        positive_or_none(limits.get("maxBeamWidth")),
        positive_or_none(limits.get("maxSeqLen")),
        prompt is not None and step is not None and prompt > step,
        None if paged is None else paged in (True, "enable"),
        # Settings that the request leaves out are off, by trtllm-build's defaults.
        plugins.get("loraPlugin", "disable") not in ("disable", False, None),
        str(mode) if mode else None,
        plugins.get("weightStreaming") is True,
    )


def _check_end_token(tokenizer: Path) -> None:
    """Check the tokenizer's eos_token: NVIDIA's preprocessing encodes it at start, and fails without it."""
    named, known = set(), False
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).is_file():
            settings = read_object(tokenizer / name)
            named.add(settings.get("eos_token") is not None)
            known = known or settings.get("tokenizer_class") not in GENERIC
    # Other tokenizer classes have a default end token.
    if named == {False} and not known:
        raise RepositoryError(
            "the tokenizer has no eos_token: NVIDIA's preprocessing fails when it starts",
            where=str(tokenizer),
            fix="set eos_token in the model's tokenizer_config.json, and build the engine again",
        )


@dataclass(frozen=True)
class NvidiaModelOptions:
    """Options of NVIDIA's models besides :class:`enginix.triton.options.RepositoryOptions`.

    Attributes:
        decoupled: several responses for a request; streaming needs it. HTTP's ``/infer`` does not work with
            it.
        accumulate_tokens: the BLS decodes all tokens again with each chunk, see above.
        bls_instances: requests that the BLS serves at once; ``None`` is the batch size.
        logits_datatype: data type of logits in answers.
        prompt_embedding_table_data_type, encoder_input_features_data_type: data types of those inputs.
        parameters: parameters of ``tensorrt_llm``; see docs/reference/triton.md.
        chat: accept messages, by a model.py around NVIDIA's; otherwise NVIDIA's models are linked unchanged.
    """

    decoupled: bool = True
    accumulate_tokens: bool = True
    bls_instances: int | None = None
    logits_datatype: str = "FP32"
    prompt_embedding_table_data_type: str = "FP16"
    encoder_input_features_data_type: str = "FP16"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    chat: bool = True

    def datatypes(self) -> dict[str, str]:
        """Return template variable → data type.

        Raises:
            RepositoryError: the backend does not support a type there.
        """
        known = load_table("triton_contract")["datatypes"]
        chosen_types = {name: getattr(self, name) for name in known if hasattr(self, name)}
        for name, value in chosen_types.items():
            if value not in known[name]:
                raise RepositoryError(
                    f"unknown data type {value!r}", where=name, fix=list_known(value, known[name])
                )
        return chosen_types


def build_tensorrt_configs(
    engine: TensorrtEngine, options: RepositoryOptions, models: NvidiaModelOptions, code: Path
) -> dict[str, Any]:
    """Return the ``ModelConfig`` message of each model; ``options.max_batch_size`` is resolved.

    Args:
        code: directory of the enginix package, which a model.py around NVIDIA's imports.

    Raises:
        RepositoryError: a parameter is invalid, above the engine's limit, or needs a feature that the engine
            lacks.
    """
    batch = options.max_batch_size
    assert batch is not None
    known = contract.build_tensorrt_contract(models.datatypes(), chat=models.chat)
    package = {"enginix_path": str(code)} if models.chat else {}
    tokenizer = str(engine.directory / "tokenizer")
    engine_path = str(engine.directory / "engine")
    queue: dict[str, Any] = {
        "preferred_batch_size": True,
        "max_queue_delay_microseconds": options.max_queue_delay_microseconds,
        "max_queue_size": options.max_queue_size,
    }
    return {
        "preprocessing": config.build_model_config(
            known["preprocessing"],
            max_batch_size=batch,
            instances=options.preprocessing_instances,
            parameters={
                "tokenizer_dir": tokenizer,
                "add_special_tokens": as_text(options.add_special_tokens),
                # NVIDIA's code requires both keys.
                "multimodal_model_path": "",
                "gpt_model_path": engine_path,
                **package,
            },
            **queue,
        ),
        "tensorrt_llm": config.build_model_config(
            known["tensorrt_llm"],
            backend="tensorrtllm",
            max_batch_size=batch,
            instances=1,
            decoupled=models.decoupled,
            parameters=_build_executor_parameters(engine, options, models),
            **queue,
        ),
        "postprocessing": config.build_model_config(
            known["postprocessing"],
            max_batch_size=batch,
            instances=options.postprocessing_instances,
            parameters={
                "tokenizer_dir": tokenizer,
                "skip_special_tokens": as_text(options.skip_special_tokens),
            },
        ),
        "ensemble": config.build_ensemble_config(known["ensemble"], max_batch_size=batch),
        BLS: config.build_model_config(
            known[BLS],
            max_batch_size=batch,
            instances=models.bls_instances or batch,
            decoupled=models.decoupled,
            dynamic_batching=False,
            parameters={
                "accumulate_tokens": as_text(models.accumulate_tokens),
                "tensorrt_llm_model_name": "tensorrt_llm",
                "tensorrt_llm_draft_model_name": "",
                "multimodal_encoders_name": "",
                **({"tokenizer_dir": tokenizer, **package} if models.chat else {}),
            },
        ),
    }


def _build_executor_parameters(
    engine: TensorrtEngine, options: RepositoryOptions, models: NvidiaModelOptions
) -> dict[str, str]:
    parameters = check_parameters(models.parameters)
    where = f"tensorrt_llm, over {engine.directory}"
    beams = int(parameters.get("max_beam_width", "1"))
    if engine.max_beam_width is not None and beams > engine.max_beam_width:
        raise RepositoryError(
            f"max_beam_width: {beams} is above the engine's {engine.max_beam_width}",
            where=where,
            fix=f"{engine.max_beam_width} or less, or build the engine with more",
        )
    for key in ("enable_chunked_context", "enable_kv_cache_reuse"):
        if parameters.get(key) in TRUE and engine.paged_context is False:
            raise RepositoryError(
                f"{key}: the engine was built without paged-context FMHA, which it needs",
                where=where,
                fix=f"build it with usePagedContextFmha, or set {key} to false",
            )
    _check_engine_support(engine, parameters, where)
    windows = read_engine_windows(engine.manifest, engine.max_seq_len, str(engine.directory))
    return {
        **DEFAULTS,
        # The backend's own default is true for every engine.
        "enable_kv_cache_reuse": "false" if engine.paged_context is False else "true",
        # Without it the backend refuses a prompt above max_num_tokens.
        **({"enable_chunked_context": "true"} if engine.longer_prompts and engine.paged_context else {}),
        "exclude_input_in_output": as_text(options.exclude_input_in_output),
        "max_beam_width": "1",
        **({"max_attention_window_size": ",".join(map(str, windows))} if windows else {}),
        **parameters,
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(engine.directory / "engine"),
        # These three are required, even if empty: the backend has no default for them.
        "tokenizer_dir": str(engine.directory / "tokenizer"),
        "guided_decoding_backend": parameters.get("guided_decoding_backend", ""),
        "xgrammar_tokenizer_info_path": parameters.get("xgrammar_tokenizer_info_path", ""),
    }


def _check_engine_support(engine: TensorrtEngine, parameters: Mapping[str, str], where: str) -> None:
    """Refuse parameters that the backend would ignore or clamp, or that would fail the first request."""

    def refuse(key: str, reason: str, fix: str) -> None:
        raise RepositoryError(f"{key}: {reason}", where=where, fix=fix)

    mode = parameters.get("decoding_mode")
    needed = SPECULATIVE.get(mode or "")
    if needed is not None and engine.speculative != needed:
        built = engine.speculative or "no speculative decoding"
        fix = f"build it with speculativeDecodingMode = {needed}"
        refuse("decoding_mode", f"{mode}, but the engine was built for {built}", fix)
    for key, required_mode in (("medusa_choices", "medusa"), ("eagle_choices", "eagle")):
        if key in parameters and mode != required_mode:
            refuse(key, f"only read with decoding_mode {required_mode}", f"set it, or leave {key} out")
    if not engine.lora and (lora := sorted(key for key in parameters if key.startswith("lora_"))):
        refuse(lora[0], "the engine was built without the LoRA plug-in", "build it with loraPlugin")
    if not engine.weight_streaming and float(parameters.get("gpu_weights_percent", "1")) < 1:
        refuse("gpu_weights_percent", "the engine was built without weight streaming", "build it with it")
    windows = [int(n) for n in parameters.get("max_attention_window_size", "0").split(",")]
    if engine.max_seq_len is not None and max(windows) > engine.max_seq_len:
        reason = f"{max(windows)} is above the engine's {engine.max_seq_len}"
        refuse("max_attention_window_size", reason, f"{engine.max_seq_len} or less")


def link_models(
    directory: Path, rootfs: Path | None, names: Mapping[str, str], around: Mapping[str, str] | None = None
) -> None:
    """Link the model.py of NVIDIA's models into version directories.

    Args:
        rootfs: root file system of the runtime's image; without it links lead to the image's paths, which
            exist inside it only.
        names: model directory → key of the table's paths.
        around: model directory → class of :mod:`enginix.triton.models.nvidia` for the model.py there;
            NVIDIA's becomes nvidia_model.py beside it.

    Raises:
        RepositoryError: the image has no such file.
    """
    image = load_table("triton_contract")["image"]
    for model, key in names.items():
        version = directory / model / "1"
        wrapper = (around or {}).get(model)
        if wrapper is not None:
            text = resources.files("enginix.triton").joinpath("shims/nvidia.py.txt").read_text("utf-8")
            (version / "model.py").write_text(text.replace("@CLASS@", wrapper), "utf-8")
        for path in image["paths"][key]:
            inside = Path(image["models"]) / path
            target = inside if rootfs is None else Path(f"{os.path.abspath(rootfs)}{inside}")
            if rootfs is not None and not target.exists():
                raise RepositoryError(
                    f"the image has no {inside}",
                    where=str(rootfs),
                    fix="pass the root file system of the runtime that the engine is for",
                )
            wrapped = wrapper is not None and inside.name == "model.py"
            (version / ("nvidia_model.py" if wrapped else inside.name)).symlink_to(target)
