"""The reference: the Hugging Face model, executed by transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from enginix.errors import EnginixError, GateError, ModelError, describe_failure
from enginix.model.attention_code import choose_attention_code
from enginix.model.jsonfile import refuse_other_artefact
from enginix.optional_libraries import pause_garbage_collector
from enginix.progress import track_step

# From widest to narrowest: a model stored in several is as precise as its widest.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _import_transformers() -> Any:
    with pause_garbage_collector():
        import transformers

        transformers.AutoTokenizer  # noqa: B018  (imported when it is named)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def read_stored_dtype(model: Path) -> str:
    """Return the widest floating-point dtype among the model's weights, from their headers.

    Raises:
        ModelError: no safetensors weights, or unreadable ones.
    """
    stored_dtypes = set()
    for path in sorted(model.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as weights:
                stored_dtypes |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            raise ModelError(
                f"not a whole safetensors file: {e}", where=str(path), fix="fetch it again"
            ) from e
    for stored, dtype in _DTYPES.items():
        if stored in stored_dtypes:
            return dtype
    raise ModelError(
        f"no floating-point safetensors weights (found {', '.join(sorted(stored_dtypes)) or 'none'})",
        where=str(model),
        fix="pass the Hugging Face model that the checkpoint was converted from",
    )


class TransformersTokenizer:
    """The model's tokenizer.

    Raises:
        ModelError: missing or unreadable.
    """

    def __init__(self, model: Path) -> None:
        refuse_other_artefact(model)
        transformers = _import_transformers()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(model), local_files_only=True, trust_remote_code=False
            )
        except EnginixError:
            raise
        except Exception as e:
            raise ModelError(
                f"no usable tokenizer: {type(e).__name__}: {e}",
                where=str(model),
                fix="the model directory needs tokenizer.json and tokenizer_config.json",
            ) from e

    def encode(self, text: str) -> list[int]:
        """Return token ids of a text at the start of an input, with the model's special tokens."""
        return [int(t) for t in self._tokenizer(text).input_ids]

    def encode_question(self, question: str) -> list[int]:
        """Return token ids of a question: by the chat template, or as plain text if the model has none."""
        if not getattr(self._tokenizer, "chat_template", None):
            return self.encode(f"Question: {question}\nAnswer:")
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        # The template has written the special tokens already.
        return [int(t) for t in self._tokenizer(text, add_special_tokens=False).input_ids]

    def encode_conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int] | None:
        """Return token ids of a conversation by the chat template; None without one, or where it refuses."""
        if not getattr(self._tokenizer, "chat_template", None):
            return None
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template raises what it likes
            return None
        return [int(t) for t in self._tokenizer(text, add_special_tokens=False).input_ids]

    def describe(self) -> dict[str, Any]:
        """Return all that determines tokens and chats: pieces, rules, special tokens, templates."""
        tokenizer = self._tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        rules = {} if backend is None else json.loads(backend.to_str())
        model = rules.pop("model", {})
        # Both are set by each call.
        rules = {key: rule for key, rule in rules.items() if key not in ("truncation", "padding")}
        return {
            "vocabulary": model.pop("vocab", None) or tokenizer.get_vocab(),
            "model of the tokenizer": model,
            **rules,
            "special tokens": tokenizer.special_tokens_map,
            "chat template": getattr(tokenizer, "chat_template", None),
            "model_max_length": tokenizer.model_max_length,
            "clean_up_tokenization_spaces": getattr(tokenizer, "clean_up_tokenization_spaces", None),
        }

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def load_hf_model(model: Path, device: str = "cpu") -> Any:
    """Load transformers' model in float32; every weight must be there.

    A small model on the CPU sets torch to one thread, for the whole process.

    Raises:
        GateError: the model cannot be loaded whole; without reference no gate passes.
        MachineError: no such device.
    """
    from enginix import device as devices  # late: packages that only read a tokenizer do not have it

    with track_step("loading the model"):
        torch_device = devices.find_device(device)
        loaded = _load_whole_model(_import_transformers(), model, torch_device)
    devices.limit_threads(loaded.num_parameters(), torch_device)
    return loaded


def _load_whole_model(transformers: Any, model: Path, torch_device: torch.device) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(model), local_files_only=True, trust_remote_code=False
        )
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(model),
            attn_implementation=choose_attention_code(config),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        # transformers fills what is missing with random numbers; such a reference would be worthless.
        if missing_weights := sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())])):
            raise ModelError(f"weights are missing: {missing_weights[0]} (of {len(missing_weights)})")
        return loaded.to(torch_device).eval()
    except Exception as e:
        raise _reference_error(model, e) from e


def _reference_error(model: Path, e: Exception) -> GateError:
    return GateError(
        f"the reference model cannot be run: {describe_failure(e)}",
        where=str(model),
        fix="pass the complete Hugging Face model that the checkpoint was converted from",
    )


def compute_hf_logits(
    model: Path, tokens: Sequence[Sequence[int]], device: str = "cpu"
) -> list[torch.Tensor]:
    """Compute transformers' logits on the model in float32, one sequence at a time.

    Returns:
        For each sequence float32 [T, vocab_size], on the CPU.

    Raises:
        GateError: the model cannot be loaded whole, or cannot be run; without reference no gate passes.
        MachineError: no such device.
    """
    loaded = load_hf_model(model, device)
    try:
        with torch.inference_mode():
            return [loaded(torch.tensor([list(t)], device=device)).logits[0].float().cpu() for t in tokens]
    except Exception as e:
        raise _reference_error(model, e) from e
