"""What evaluation needs to know of a model, from its small configuration files.

Names are those of a lock's ``model``. A value that the files do not give is absent, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.errors import ModelError
from enginix.model.jsonfile import parse_object

CONFIG = "config.json"
MODELOPT = "hf_quant_config.json"
FILES = (CONFIG, MODELOPT)

# fact → names in config.json, the first that is there counts
INTEGERS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "kvHeads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "headSize": ("head_dim", "kv_channels"),
    "hiddenSize": ("hidden_size", "n_embd"),
    "intermediateSize": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "seq_length"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expertIntermediateSize": ("moe_intermediate_size",),
    "expertsPerToken": ("num_experts_per_tok", "experts_per_token"),
}
# What older locks hold and nobody reads: a window that the model may not even use (use_sliding_window).
FORMER = frozenset({"slidingWindow"})


def model_facts(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Facts from the content of ``FILES``, as far as they are there.

    Raises:
        ModelError: one of them is not a JSON object.
    """
    if CONFIG not in files:
        return {}
    top = parse_object(files[CONFIG], f"{where}: {CONFIG}")
    # Multimodal models keep the language model's sizes below text_config.
    text = top.get("text_config")
    config = {**top, **text} if isinstance(text, dict) else top
    facts: dict[str, Any] = {}
    names = top.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        facts["architecture"] = names[0]
    if isinstance(top.get("model_type"), str):
        facts["modelType"] = top["model_type"]
    for fact, keys in INTEGERS.items():
        value = next((config[k] for k in keys if type(config.get(k)) is int), None)
        if value is not None and 0 <= value < 1 << 53:
            facts[fact] = value
    # config.json leaves out what its class would default to; these two defaults hold in all of them.
    if "heads" in facts:
        facts.setdefault("kvHeads", facts["heads"])
        if "hiddenSize" in facts and facts["heads"] and facts["hiddenSize"] % facts["heads"] == 0:
            facts.setdefault("headSize", facts["hiddenSize"] // facts["heads"])
    dtype = config.get("dtype") or config.get("torch_dtype")
    if isinstance(dtype, str):
        facts["dtype"] = dtype.removeprefix("torch.")
    if isinstance(config.get("tie_word_embeddings"), bool):
        facts["tiedEmbeddings"] = config["tie_word_embeddings"]
    facts.update(_quantization(config, files, where))
    if remote := _remote_code(top):
        facts["remoteCode"] = remote
    return {k: v for k, v in facts.items() if not isinstance(v, str) or (v.isprintable() and len(v) <= 200)}


def _quantization(config: Mapping[str, Any], files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """``quantization`` and ``kvCacheQuantization``: the algorithm's name, or None for none."""
    inside = config.get("quantization_config")
    inside = inside if isinstance(inside, dict) else {}
    algorithm = inside.get("quant_algo") or inside.get("quant_method")
    cache = inside.get("kv_cache_quant_algo")
    scheme = inside.get("kv_cache_scheme")
    if cache is None and isinstance(scheme, dict) and scheme.get("num_bits") == 8:
        cache = {"float": "FP8", "int": "INT8"}.get(str(scheme.get("type")))
    found: dict[str, Any] = {}
    if MODELOPT not in files and isinstance(method := inside.get("quant_method"), str):
        # "fp8" alone would read as ModelOpt's FP8; the names are those of quantization.json.
        found["quantizationMethod"] = (
            "fp8-block" if method == "fp8" and inside.get("weight_block_size") else method
        )
    if MODELOPT in files:
        # ModelOpt's own file is the older of the two places, and where both are, they agree.
        own = parse_object(files[MODELOPT], f"{where}: {MODELOPT}")
        quant, producer = own.get("quantization"), own.get("producer")
        if not isinstance(quant, dict):
            raise ModelError("no quantization object", where=f"{where}: {MODELOPT}", fix="report it upstream")
        algorithm = quant.get("quant_algo") or algorithm
        cache = quant.get("kv_cache_quant_algo") or cache
        if isinstance(producer, dict) and isinstance(producer.get("name"), str):
            version = producer.get("version")
            found["quantizer"] = (
                f"{producer['name']} {version}" if isinstance(version, str) else producer["name"]
            )
    found["quantization"] = algorithm.upper() if isinstance(algorithm, str) else None
    found["kvCacheQuantization"] = cache.upper() if isinstance(cache, str) else None
    return found


def _remote_code(config: Mapping[str, Any]) -> bool:
    """Whether the configuration names Python code of the repository."""
    return isinstance(config.get("auto_map"), dict) and bool(config["auto_map"])
