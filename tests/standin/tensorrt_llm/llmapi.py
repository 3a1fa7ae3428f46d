"""Stand-in for what the LLM API is given: the contract's names, and no other."""

from .standin import contract

PLAIN = {
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "Path": lambda v: isinstance(v, str),
    "dict": lambda v: isinstance(v, dict),
    "object": lambda v: v is not None,
    "null": lambda v: v is None,
    "list[int]": lambda v: isinstance(v, list) and all(PLAIN["int"](n) for n in v),
    "set[int]": lambda v: isinstance(v, list) and all(PLAIN["int"](n) for n in v),
    "list[list[int]]": lambda v: isinstance(v, list) and all(PLAIN["list[int]"](n) for n in v),
}
# Of the classes that the schema has not, an object may hold anything.
UNKNOWN = ("LoraConfig", "QuantConfig")
DISPATCH = {
    "speculative_config": (
        "decoding_type",
        {
            "MTP": "MTPDecodingConfig",
            "Medusa": "MedusaDecodingConfig",
            "Eagle": "EagleDecodingConfig",
            "Lookahead": "LookaheadDecodingConfig",
            "NGram": "NGramDecodingConfig",
            "DraftTarget": "DraftTargetDecodingConfig",
            "SaveState": "SaveHiddenStatesDecodingConfig",
            "AUTO": "AutoDecodingConfig",
        },
    ),
    "sparse_attention_config": (
        "algorithm",
        {"rocket": "RocketSparseAttentionConfig", "dsa": "DeepSeekSparseAttentionConfig"},
    ),
}


def takes(text, value):
    """Whether a value is of a type of the schema, whose classes forbid names that they do not know."""
    for part in (p.strip() for p in text.split("|")):
        if part.startswith('"'):
            if value == part.strip('"'):
                return True
        elif part in PLAIN:
            if PLAIN[part](value):
                return True
        elif isinstance(value, dict):
            if part in UNKNOWN:
                return True
            check_fields(part, value)
            return True
    return False


def check_fields(name, given):
    """Raises what pydantic raises: a name or a type that the class has not, or a field that is missing."""
    fields = contract("llm_args_schema")["classes"][name]["fields"]
    for key, value in given.items():
        if key not in fields:
            raise ValueError(f"{name}.{key}: Extra inputs are not permitted")
        kind, inner = fields[key]["type"], value
        if key in DISPATCH and isinstance(value, dict):
            choice, classes = DISPATCH[key]
            if value.get(choice) not in classes:
                raise ValueError(f"Invalid decoding type: {value.get(choice)}")
            kind, inner = classes[value[choice]], {k: v for k, v in value.items() if k != choice}
        if not takes(kind, inner):
            raise ValueError(f"{name}.{key}: {value!r} is no {fields[key]['type']}")
    for key, row in fields.items():
        if row.get("default") == "<required>" and key not in given and key != "model":
            raise ValueError(f"{name}.{key}: Field required")


class _Checked:
    """Takes the names of a section of the contract."""

    section = ""

    def __init__(self, **fields):
        rows = contract("llm_arguments")[self.section]
        defaults = rows if isinstance(rows, dict) else dict.fromkeys(rows)
        if unknown := set(fields) - set(defaults):
            raise TypeError(f"{type(self).__name__} got unexpected keyword arguments {sorted(unknown)}")
        self.__dict__.update(defaults, **fields)


class SamplingParams(_Checked):
    section = "sampling_params"

    def __init__(self, **fields):
        super().__init__(**fields)
        greedy = self.top_k in (None, 1) and self.top_p in (None, 0.0) and not self.use_beam_search
        if greedy and (self.best_of or self.n) > 1:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns")
        if not greedy or self.use_beam_search:
            raise NotImplementedError("stand-in: greedy only")


class KvCacheConfig(_Checked):
    section = "kv_cache_config"

    def __init__(self, **fields):
        super().__init__(**{"enable_block_reuse": True, **fields})
