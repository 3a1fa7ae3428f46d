"""The tensors that TensorRT-LLM's classes require of a rank, and the check that a rank has them.

As from_checkpoint does: a missing tensor and a wrong shape end the build, a surplus one is a warning. It is
judged by checkpoints of TensorRT-LLM's own converters, in tests/golden/golden.tar.xz.
"""

import json
from fnmatch import fnmatchcase

LLAMA = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
QWEN = ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
KNOWN = (*LLAMA, *QWEN, "Phi3ForCausalLM")
FLOATS = ("BF16", "F16", "F32")
UNQUANTIZED = ("*lm_head", "*router", "*vocab_embedding", "*shared_expert_gate")


def header(path):
    """Name → dtype, shape of a safetensors file."""
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        assert 0 < length < 100_000_000, f"{path.name}: no safetensors file"
        rows = json.loads(f.read(length))
    rows.pop("__metadata__", None)
    return {name: (row["dtype"], tuple(row["shape"])) for name, row in rows.items()}


class Expected:
    """Required tensors of one rank: name → shape, and which of them are matrices of a linear layer."""

    def __init__(self, config, rank):
        self.config = config
        mapping = config.get("mapping") or {}
        self.tp, self.pp = mapping.get("tp_size", 1), mapping.get("pp_size", 1)
        self.ep = max(mapping.get("moe_ep_size", 1), 1)
        self.stage = rank // self.tp
        self.shapes = {}
        self.linear = {}
        self._outside()
        total = config["num_hidden_layers"]
        each, more = divmod(total, self.pp)
        # Local numbers: every stage counts from 0.
        for number in range(total if self._whole() else each + (self.stage < more)):
            self._layer(f"transformer.layers.{number}")

    def _whole(self):
        """Phi-3's class has no pipeline: every rank makes everything."""
        return self.config["architecture"] == "Phi3ForCausalLM"

    def _outside(self):
        c, tp = self.config, self.tp
        hidden, vocabulary = c["hidden_size"], c["vocab_size"]
        rows = -(-vocabulary // tp)
        if self.stage == 0 or self._whole():
            table = (vocabulary, hidden)
            if c.get("use_parallel_embedding"):
                table = (vocabulary, hidden // tp) if c.get("embedding_sharding_dim") else (rows, hidden)
            self.shapes["transformer.vocab_embedding.weight"] = table
        if self.stage == self.pp - 1 or self._whole():
            self.shapes["transformer.ln_f.weight"] = (hidden,)
            self.shapes["lm_head.weight"] = (rows, hidden)

    def _linear(self, name, out, width, bias=False):
        self.linear[name] = (out, width)
        if bias:
            self.shapes[f"{name}.bias"] = (out,)

    def _layer(self, name):
        c, tp = self.config, self.tp
        hidden, head, heads = c["hidden_size"], c["head_size"], c["num_attention_heads"]
        keys = max(c["num_key_value_heads"] // tp, 1)
        own = c["architecture"] in QWEN
        bias = bool(c.get("attn_bias"))
        self.shapes[f"{name}.input_layernorm.weight"] = (hidden,)
        self.shapes[f"{name}.post_layernorm.weight"] = (hidden,)
        self._linear(f"{name}.attention.qkv", (heads // tp + 2 * keys) * head, hidden, bias)
        self._linear(f"{name}.attention.dense", hidden, heads // tp * head, bias and not own)
        if c["architecture"].startswith("Qwen3"):
            for part in ("q_layernorm", "k_layernorm"):
                self.shapes[f"{name}.attention.{part}.weight"] = (head,)
        experts = (c.get("moe") or {}).get("num_experts", 0)
        if experts:
            self._experts(f"{name}.mlp", experts)
        else:
            width = c["intermediate_size"] // tp
            fused = c["architecture"] == "Phi3ForCausalLM"
            mlp = bool(c.get("mlp_bias"))
            self._linear(f"{name}.mlp.fc", 2 * width if fused else width, hidden, mlp)
            if not fused:
                self._linear(f"{name}.mlp.gate", width, hidden, mlp)
            self._linear(f"{name}.mlp.proj", hidden, width, mlp)

    def _experts(self, name, experts):
        c, hidden = self.config, self.config["hidden_size"]
        width = (c.get("moe_intermediate_size") or c["intermediate_size"]) // (self.tp // self.ep)
        local = experts // self.ep
        self.shapes[f"{name}.router.weight"] = (experts, hidden)
        self.linear[f"{name}.fc"] = (local, 2 * width, hidden)
        self.linear[f"{name}.proj"] = (local, hidden, width)
        shared = (c.get("moe") or {}).get("shared_expert_intermediate_size", 0)
        if shared and c["architecture"] == "Qwen2MoeForCausalLM":
            self.linear[f"{name}.shared_expert.fc"] = (2 * shared // self.tp, hidden)
            self.linear[f"{name}.shared_expert.proj"] = (hidden, shared // self.tp)
            self.shapes[f"{name}.shared_expert_gate.weight"] = (1, hidden)


def _matrix(module, shape, config, found, wrong):
    """A linear layer's weight in its format, and the scales that the format needs."""
    quantization = config.get("quantization") or {}
    algorithm = quantization.get("quant_algo")
    patterns = quantization.get("exclude_modules") or UNQUANTIZED
    dtype, stored = found[f"{module}.weight"]
    if algorithm is None or any(fnmatchcase(module, p) for p in patterns) or dtype in FLOATS:
        if stored != shape:
            wrong[f"{module}.weight"] = (stored, shape)
        return []
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN") and stored != shape:
        wrong[f"{module}.weight"] = (stored, shape)
    if algorithm == "NVFP4" and stored != (*shape[:-1], shape[-1] // 2):
        wrong[f"{module}.weight"] = (stored, (*shape[:-1], shape[-1] // 2))
    scales = {
        "FP8": ["weights_scaling_factor", "activation_scaling_factor"],
        "FP8_PER_CHANNEL_PER_TOKEN": ["per_channel_scale"],
    }
    return [f"{module}.{leaf}" for leaf in scales.get(algorithm, [])]


def check_tensors(config, rank, found):
    """Raises what from_checkpoint raises; returns the names that nothing reads.

    Architectures whose class this stand-in does not know are not checked.
    """
    if config["architecture"] not in KNOWN:
        return set()
    expected = Expected(config, rank)
    required = {*expected.shapes, *(f"{module}.weight" for module in expected.linear)}
    if config.get("tie_word_embeddings") or config.get("share_embedding_table"):
        required -= {"lm_head.weight"}
    wrong = {}
    for module, shape in expected.linear.items():
        if f"{module}.weight" in found:
            required |= set(_matrix(module, shape, config, found, wrong))
    missing = {name for name in required if name not in found}
    if missing:
        raise RuntimeError(f"Required but not provided tensors:{missing}")
    for name, shape in expected.shapes.items():
        if name in found and found[name][1] != shape:
            wrong[name] = (found[name][1], shape)
    if wrong:
        name, (stored, shape) = sorted(wrong.items())[0]
        raise ValueError(f"{name}: shape {stored}, the layer has {shape}")
    layers = tuple(f"{module}." for module in expected.linear)
    return {n for n in found if n not in required and not n.startswith(layers)}
