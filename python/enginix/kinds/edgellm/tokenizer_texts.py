"""The texts of a model that the runtime reads: tokenizer, chat template, tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ModelError
from enginix.model.end_tokens import END_TOKEN_FILES, list_named_end_tokens
from enginix.model.jsonfile import read_object
from enginix.tables import load_table

TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
# Order of NVIDIA's exporter (tensorrt_edgellm/chat_template.py).
_EMBEDDING_FILES = ("chat_template.json", "processor_config.json", SETTINGS_FILE)
_QUESTION = "What is the capital of France?"
_AGAIN = "compare it with the model's repository, and fetch it again"


@dataclass(frozen=True)
class ModelTexts:
    """The texts of a model.

    Attributes:
        template: text of the chat template.
        end_tokens: union of config.json and generation_config.json, as the exporter writes it.
        notes: what is unusual, and serves nevertheless.
    """

    template: str
    end_tokens: tuple[int, ...]
    notes: tuple[str, ...]


def read_model_texts(model: Path, config: Mapping[str, Any], vocabulary: int) -> ModelTexts:
    """Read and check the texts of a model directory.

    Args:
        config: the parsed ``config.json``.
        vocabulary: rows of the embedding table.

    Raises:
        ModelError: a text is missing or broken, or has tokens that the model does not know.
    """
    _require_tokenizer_files(model)
    settings = read_object(model / SETTINGS_FILE)
    template = read_chat_template(model)
    prompt = _render_question(template, settings, model)
    end_tokens = list_named_end_tokens(model)
    if beyond := [token for token in end_tokens if token >= vocabulary]:
        raise ModelError(
            f"eos_token_id {beyond[0]} is beyond the model's {vocabulary} tokens: no answer would end",
            where=model,
            fix=f"correct it in {' or '.join(END_TOKEN_FILES)}",
        )
    strange = _check_token_ids(model, vocabulary)
    notes = []
    named = sorted(text for text in strange if text in template or text in prompt)
    if named:
        raise ModelError(
            f"the chat template writes {named[0]!r}, token {strange[named[0]]} of tokenizer.json, and the "
            f"model has {vocabulary} tokens",
            where=model,
            fix="take the tokenizer that belongs to the model",
        )
    if strange:
        first = min(strange, key=lambda text: strange[text])
        notes.append(
            f"{len(strange)} added token{'s' * (len(strange) > 1)} of tokenizer.json from {first!r} "
            f"({strange[first]}) are beyond the model's {vocabulary}: requests must not contain them"
        )
    if not end_tokens:
        notes.append(
            "no end token in config.json or generation_config.json: answers end at the request's limit alone"
        )
    if "\r\n" in template:
        notes.append("the chat template's lines end in CRLF, which transformers reads as LF")
    return ModelTexts(template, end_tokens, tuple(notes))


def _require_tokenizer_files(model: Path) -> None:
    for name in ("tokenizer.json", SETTINGS_FILE):
        if (model / name).is_file():
            continue
        others = [n for n in ("tokenizer.model", "vocab.json", "tekken.json") if (model / n).is_file()]
        if name == "tokenizer.json" and others:
            raise ModelError(
                f"no tokenizer.json, and {others[0]} alone is not read by the runtime",
                where=model,
                fix="write tokenizer.json with transformers: "
                "AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)",
            )
        raise ModelError(f"no {name}", where=model, fix="fetch the whole model")


def read_chat_template(model: Path) -> str:
    """Read the chat template; the exporter takes exactly one.

    Raises:
        ModelError: the model has no chat template, several by name, or two that differ.
    """
    extra = model / "additional_chat_templates"
    if extra.exists():
        raise ModelError(
            "named chat templates, and TensorRT Edge-LLM takes one",
            where=extra,
            fix=f"remove the directory, and keep the template to serve as {TEMPLATE_FILE}",
        )
    plain = model / TEMPLATE_FILE
    if plain.is_file():
        try:
            # Bytes, as transformers and the runtime differ in how they read the ends of lines.
            template = plain.read_bytes().decode("utf-8")
        except (OSError, ValueError) as e:
            raise ModelError(f"unreadable: {e}", where=plain, fix=_AGAIN) from e
        found = [(TEMPLATE_FILE, template)]
    else:
        settings = [(name, model / name) for name in _EMBEDDING_FILES if (model / name).is_file()]
        embedded = [(n, _choose_template(read_object(p).get("chat_template"), p)) for n, p in settings]
        found = [(name, text) for name, text in embedded if text is not None]
    if not found or not found[0][1].strip():
        failure = load_table("edgellm")["failures"][0]
        raise ModelError(failure["what"], where=model, fix=failure["fix"])
    name, template = found[0]
    other = next((n for n, text in found if text != template), None)
    if other is not None:
        raise ModelError(
            f"{name} and {other} have different chat templates",
            where=model,
            fix=f"write the one to serve into {TEMPLATE_FILE}",
        )
    if template.startswith("\ufeff"):
        raise ModelError(
            "the chat template begins with a byte order mark, and so would every prompt",
            where=model / name,
            fix=f"save it as UTF-8 without BOM: sed -i '1s/^\\xEF\\xBB\\xBF//' {name}",
        )
    return template


def _choose_template(value: Any, path: Path) -> str | None:
    """Return the one template of a file: a text, or a list or object with the name ``default`` alone."""
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        value = {row.get("name"): row.get("template") for row in value}
    if isinstance(value, dict):
        if set(value) != {"default"}:
            names = ", ".join(sorted(map(str, value))) or "none"
            raise ModelError(
                f"chat templates by name ({names}), and TensorRT Edge-LLM takes one",
                where=path,
                fix=f"keep the one to serve as {TEMPLATE_FILE}",
            )
        value = value["default"]
    if value is not None and not isinstance(value, str):
        raise ModelError("chat_template is not a text", where=path, fix=_AGAIN)
    return value


def _render_question(template: str, settings: Mapping[str, Any], model: Path) -> str:
    """Render one question as transformers does, and return the prompt."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in settings.items()
        if key.endswith("_token") and value is not None
    }
    try:
        messages = [{"role": "user", "content": _QUESTION}]
        (prompt,), _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **special
        )
    except jinja2.TemplateSyntaxError as e:
        raise ModelError(
            f"the chat template is broken at line {e.lineno}: {e.message}", where=model, fix=_AGAIN
        ) from e
    except Exception as e:  # the template's code may raise anything
        reason = str(e).strip().split("\n", 1)[0] or type(e).__name__
        is_refusal = isinstance(e, jinja2.TemplateError) and not isinstance(e, jinja2.TemplateRuntimeError)
        raise ModelError(
            f"the chat template {'refuses' if is_refusal else 'fails for'} one question of a user: {reason}",
            where=model,
            fix=f"write a template that takes a question alone into {TEMPLATE_FILE}"
            if is_refusal
            else _AGAIN,
        ) from e
    if _QUESTION not in prompt:
        raise ModelError(
            "the chat template leaves a user's question out of the prompt", where=model, fix=_AGAIN
        )
    return str(prompt)


def _check_token_ids(model: Path, vocabulary: int) -> dict[str, int]:
    """Refuse a tokenizer of another model, and return its added tokens that the model does not know."""
    path = model / "tokenizer.json"
    tokenizer = read_object(path)
    section = tokenizer.get("model")
    entries = section.get("vocab") if isinstance(section, dict) else None
    if isinstance(entries, dict):
        largest = max((i for i in entries.values() if isinstance(i, int)), default=-1)
    else:
        largest = len(entries) - 1 if isinstance(entries, list) else -1
    if largest < 0:
        raise ModelError("the tokenizer has no vocabulary", where=path, fix=_AGAIN)
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer's largest token is {largest}, and the model has {vocabulary} tokens",
            where=path,
            fix="take the tokenizer that belongs to the model",
        )
    added = tokenizer.get("added_tokens")
    rows = [row for row in added if isinstance(row, dict)] if isinstance(added, list) else []
    return {
        str(row.get("content")): row["id"]
        for row in rows
        if isinstance(row.get("id"), int) and row["id"] >= vocabulary
    }
