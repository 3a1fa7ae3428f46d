"""The description of a model: one frozen record from its JSON files and headers.

A model that cannot be converted is described as fully as any other; ``refusal`` then says why it cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginix.errors import EnginixError, ModelError
from enginix.inspect.inspected_model import InspectedModel
from enginix.inspect.parameters import ParameterCount, count_parameters
from enginix.inspect.roles import group_by_role
from enginix.letter_case import camel_case_keys
from enginix.model import ModelWeights, open_weights
from enginix.model.class_defaults import EXPERT_COUNT_KEYS, fill_absent_sizes
from enginix.model.context_length import read_model_context
from enginix.model.family_config import find_kv_heads, name_family_sizes
from enginix.model.jsonfile import read_architecture, read_object
from enginix.model.number_formats import read_algorithms
from enginix.model.other_layouts import require_model_config
from enginix.model.quantization import canonical_algorithm, read_inline_kv_cache
from enginix.model.safetensors import INDEX, SINGLE


@dataclass(frozen=True)
class InspectedQuantization:
    """A model's quantization, as its own files name it.

    Attributes:
        algorithm: TensorRT-LLM's name if it has one (``NVFP4``), else the method's (``awq``).
        kv_cache: ``FP8``, another name, or None for the model's dtype.
        producer: the software that wrote it, for instance ``modelopt 0.37.0``; None if it is not named.
        said_by: the file with the description.
    """

    algorithm: str | None
    kv_cache: str | None
    group_size: int | None
    exclude: tuple[str, ...]
    producer: str | None
    said_by: str


@dataclass(frozen=True)
class ModelDescription:
    """A model. A size is None where ``config.json`` does not have it.

    Attributes:
        count: from headers; None for a model without safetensors.
        chat_template: the file that holds it; None without one.
        files: role → paths.
        size: bytes of all files.
        refusal: why ``enginix convert`` would refuse it, and how to fix it; None when it would not.
        fetched: bytes that were downloaded for this description.
    """

    source: str
    repo: str | None
    revision: str | None
    license: str | None
    gated: str | bool
    architecture: str | None
    model_type: str | None
    count: ParameterCount | None
    layers: int | None
    heads: int | None
    kv_heads: int | None
    head_size: int | None
    hidden_size: int | None
    intermediate_size: int | None
    experts: int | None
    experts_per_token: int | None
    vocabulary: int | None
    context: int | None
    dtype: str | None
    tied_embeddings: bool
    quantization: InspectedQuantization | None
    chat_template: str | None
    files: Mapping[str, tuple[str, ...]]
    size: int
    refusal: str | None
    fetched: int

    def as_json(self) -> dict[str, Any]:
        """Return keys in camel case, as in every JSON that enginix prints."""
        record: dict[str, Any] = camel_case_keys(asdict(self))
        return record


def describe_model(model: InspectedModel) -> ModelDescription:
    """Describe ``model`` from its files.

    Raises:
        ModelError: no ``config.json``, invalid JSON, a checkpoint or an engine, or headers
            that contradict themselves.
    """
    raw = read_object(model.directory / "config.json")
    require_model_config(raw, model.source)
    has_weights = SINGLE in model.files or INDEX in model.files
    weights = open_weights(model.directory) if has_weights else None
    # Models of text and images keep the language model's sizes one level down.
    text = raw.get("text_config")
    sizes = dict(fill_absent_sizes({**raw, **text} if isinstance(text, dict) else raw))
    architecture = read_architecture(raw)
    kv_heads = find_kv_heads(sizes, architecture)
    sizes = sizes | name_family_sizes(sizes, architecture)
    heads = _read_size(sizes, "num_attention_heads", "n_head")
    hidden = _read_size(sizes, "hidden_size", "n_embd")
    dtype = sizes.get("dtype", sizes.get("torch_dtype"))
    return ModelDescription(
        source=model.source,
        repo=model.repo,
        revision=model.revision,
        license=model.license,
        gated=model.gated,
        architecture=architecture,
        model_type=_read_nonempty(raw.get("model_type")),
        count=count_parameters(weights.tensors, raw) if weights else None,
        layers=_read_size(sizes, "num_hidden_layers", "n_layer"),
        heads=heads,
        # Null means as many as heads, but for a class that says them by layer.
        kv_heads=kv_heads
        or _read_size(sizes, "num_key_value_heads")
        or (None if sizes.get("block_configs") else heads),
        head_size=_read_head_size(sizes, heads, hidden),
        hidden_size=hidden,
        intermediate_size=_read_size(sizes, "intermediate_size", "n_inner"),
        experts=_read_size(sizes, *EXPERT_COUNT_KEYS),
        experts_per_token=_read_size(sizes, "num_experts_per_tok"),
        vocabulary=_read_size(sizes, "vocab_size"),
        context=read_model_context(sizes),
        dtype=dtype.removeprefix("torch.") if isinstance(dtype, str) else None,
        tied_embeddings=sizes.get("tie_word_embeddings") is True,
        quantization=_read_quantization(model, raw),
        chat_template=_find_chat_template(model),
        files=group_by_role(model.files),
        size=sum(model.files.values()),
        refusal=_find_refusal(model.directory, weights),
        fetched=model.fetched,
    )


def _read_head_size(sizes: Mapping[str, Any], heads: int | None, hidden: int | None) -> int | None:
    """Return the elements of a query head; of multi-head latent attention, whose keys have no heads, too."""
    if _read_size(sizes, "kv_lora_rank"):
        plain, rotated = _read_size(sizes, "qk_nope_head_dim"), _read_size(sizes, "qk_rope_head_dim")
        return plain + rotated if plain and rotated else None
    if head_size := _read_size(sizes, "head_dim", "kv_channels"):
        return head_size
    return hidden // heads if heads and hidden else None


def _read_size(raw: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = raw.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
    return None


def _read_nonempty(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_quantization(model: InspectedModel, raw: Mapping[str, Any]) -> InspectedQuantization | None:
    """Read ModelOpt's sidecar, else ``quantization_config``; nothing is refused here."""
    sidecar, inline = model.directory / "hf_quant_config.json", raw.get("quantization_config")
    said_by, producer, entry = "config.json", None, inline
    if sidecar.exists():
        content = read_object(sidecar)
        said_by, producer, entry = sidecar.name, content.get("producer"), content.get("quantization")
    if not isinstance(entry, dict):
        return None
    producer = entry.get("producer", producer)
    method = _read_nonempty(entry.get("quant_method"))
    name = _read_nonempty(entry.get("quant_algo")) or method
    if method == "fp8" and entry.get("weight_block_size"):
        name = "FP8_BLOCK_SCALES"
    lists = (entry.get(key) for key in ("exclude_modules", "ignore", "modules_to_not_convert"))
    exclude = next((names for names in lists if names is not None), None)
    cache = read_inline_kv_cache(entry)
    return InspectedQuantization(
        algorithm=_find_algorithm(name),
        kv_cache=cache.upper() if isinstance(cache, str) and cache else None,
        group_size=_read_size(entry, "group_size"),
        exclude=tuple(e for e in exclude if isinstance(e, str)) if isinstance(exclude, list) else (),
        producer=_format_producer(producer) or (method if method not in (None, name) else None),
        said_by=said_by,
    )


def _find_algorithm(name: str | None) -> str | None:
    known = None if name is None else canonical_algorithm(name)
    if known == "NO_QUANT":
        return None
    return known if known in read_algorithms() else name


def _format_producer(value: Any) -> str | None:
    if not isinstance(value, dict):
        return _read_nonempty(value)
    return " ".join(v for k in ("name", "version") if (v := _read_nonempty(value.get(k)))) or None


def _find_chat_template(model: InspectedModel) -> str | None:
    for name in ("chat_template.jinja", "chat_template.json"):
        if name in model.files:
            return name
    path = model.directory / "tokenizer_config.json"
    if path.exists() and read_object(path).get("chat_template"):
        return path.name
    return None


def _find_refusal(directory: Path, weights: ModelWeights | None) -> str | None:
    if weights is None:
        if not any(directory.glob("*.safetensors")):
            return "no safetensors weights (lock other formats with --include)"
        try:
            open_weights(directory)
        except ModelError as e:
            return f"{e.what}; {e.fix}"
    # Imported late: a description of files alone needs no converter.
    from enginix.checkpoint.convert import ConvertOptions, derive_conversion_spec

    try:
        derive_conversion_spec(directory, ConvertOptions(), headers_only=True)
    except EnginixError as e:
        return f"{e.what}; {e.fix}" if e.fix else e.what
    return None
