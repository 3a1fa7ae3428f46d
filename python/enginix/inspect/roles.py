"""The role of each file of a model, by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from enginix.manifest import MANIFEST_FILE as MANIFEST

# First match wins; names as transformers, ModelOpt and the Hub write them.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("weights", ("*.safetensors",)),
    ("index", ("*.safetensors.index.json",)),
    ("other weights", (
        "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.gguf", "*.ggml",
        "*.onnx", "*.onnx_data", "*.tflite", "*.npz", "*.bin.index.json", "*.engine", "*.plan",
    )),
    ("configuration", ("config.json",)),
    ("quantization", ("hf_quant_config.json", "quant_config.json", "quantize_config.json", "recipe.yaml")),
    ("generation", ("generation_config.json",)),
    ("chat template", ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*")),
    ("tokenizer", (
        "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
        "*.tiktoken", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    )),
    ("processor", ("preprocessor_config.json", "processor_config.json", "*_preprocessor_config.json")),
    ("licence", ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")),
    ("code", ("*.py",)),
    ("documentation", ("*.md", "*.rst", "*.pdf", "*.png", "*.jpg", "*.jpeg", "*.svg", "*.gif")),
    ("manifest", (MANIFEST,)),
    ("repository", (".gitattributes", ".gitignore")),
)  # fmt: skip


def find_role(path: str) -> str:
    """Return the role of one file; ``other`` if no rule matches."""
    for name, patterns in RULES:
        if any(fnmatchcase(path if "/" in p else path.rsplit("/", 1)[-1], p) for p in patterns):
            return name
    return "other"


def group_by_role(paths: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Return role → paths, in the order of ``RULES``, each sorted."""
    paths_by_role: dict[str, list[str]] = {}
    for path in paths:
        paths_by_role.setdefault(find_role(path), []).append(path)
    order = [name for name, _ in RULES] + ["other"]
    return {name: tuple(sorted(paths_by_role[name])) for name in order if name in paths_by_role}
