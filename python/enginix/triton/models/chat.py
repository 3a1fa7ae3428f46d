"""Convert messages to a prompt by the model's own chat template, in transformers' Jinja environment.

A template is code of the model's author; messages are data of the client. transformers renders with Jinja's
immutable sandbox, so neither reaches Python; a client cannot send a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import RepositoryError
from enginix.files import refuse_damage
from enginix.tables import load_table
from enginix.triton.models.request import Inputs, RequestError
from enginix.wording import suggest_name, with_article

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Arguments of transformers' apply_chat_template that a client may set; a template may read others.
ARGUMENTS: dict[str, type] = {
    "add_generation_prompt": bool,
    "continue_final_message": bool,
    "tools": list,
    "documents": list,
}
# Those of them that have no effect unless the template reads them.
_OF_TEMPLATES = ("tools", "documents")
_MESSAGE = ("role", "content", "tool_call_id")
# Roles that every template knows; of an assistant's message a template may show a part.
_ALWAYS_SHOWN = ("user", "assistant")
# Names that the renderer and the tokenizer set.
_OWN = ("messages", "conversations", "chat_template", "return_assistant_tokens_mask", "tokenize")


@dataclass(frozen=True)
class Chat:
    """A request's messages, parsed but not checked against a template."""

    messages: list[dict[str, Any]]
    arguments: dict[str, Any]


def read_chat(inputs: Inputs, text: str, messages: str, arguments: str) -> Chat | None:
    """Read the messages of a request; ``None`` if it has a text instead.

    Args:
        text, messages, arguments: names of the three inputs in this model.

    Raises:
        RequestError: text and messages are both given or both missing, or invalid; has the ensemble's names.
    """
    messages_text, prompt = inputs.text(messages), inputs.text(text)
    if messages_text and prompt:
        raise RequestError("text_input and messages are both given; give one of them")
    extra = inputs.text(arguments)
    if not messages_text:
        if prompt is None:
            raise RequestError("text_input is missing, and so are messages; give one of them")
        if extra:
            raise RequestError("chat_template_args without messages")
        return None
    return Chat(_parse_messages(messages_text), _parse_template_arguments(extra) if extra else {})


def _parse_json_input(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise RequestError(f"{name}: not JSON: {e}") from e


def _parse_template_arguments(text: str) -> dict[str, Any]:
    arguments = _parse_json_input("chat_template_args", text)
    if not isinstance(arguments, dict):
        raise RequestError("chat_template_args: not a JSON object")
    return arguments


def _parse_messages(text: str) -> list[dict[str, Any]]:
    messages = _parse_json_input("messages", text)
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages: not a JSON list of at least one message")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise RequestError(f'{where}: not an object such as {{"role": "user", "content": "…"}}')
        if not isinstance(message.get("role"), str):
            raise RequestError(f"{where}: role is missing or not a text")
        content = message.get("content")
        if not isinstance(content, str | list) and not (content is None and _may_omit_content(message)):
            raise RequestError(f"{where}: content is missing or not a text")
    return messages


def _may_omit_content(message: Mapping[str, Any]) -> bool:
    """Tell whether a message without content is one: an assistant's tool calls, or refusal, alone."""
    fields = load_table("openai")["insteadOfContent"]
    return message["role"] == "assistant" and any(map(message.get, fields))


# Key of chat_template_args for this server: texts of messages may spell special tokens.
ALLOW_SPECIAL_TOKENS = "allow_special_tokens"


def separate_special_tokens(chat: Chat, special: Sequence[str], mark: str) -> Chat:
    """Put a mark into each special token that the text of a message spells.

    The marked text does not spell the token any more; without the mark it is the same text.

    Args:
        special: the tokenizer's special tokens.
        mark: a text that no message has.

    Raises:
        RequestError: ``allow_special_tokens`` is not true or false.
    """
    arguments = dict(chat.arguments)
    allowed = arguments.pop(ALLOW_SPECIAL_TOKENS, False)
    if not isinstance(allowed, bool):
        raise RequestError(f"chat_template_args: {ALLOW_SPECIAL_TOKENS} is not true or false")
    if allowed or not special:
        return Chat(chat.messages, arguments)
    # The longest first: one may begin with another.
    pattern = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)))

    def separated(text: str) -> str:
        return pattern.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", text)

    messages = []
    for message in chat.messages:
        content = message.get("content")
        # An assistant's text is the model's own, and templates look for its tokens there.
        if message["role"] == "assistant":
            pass
        elif isinstance(content, str):
            message = {**message, "content": separated(content)}
        elif isinstance(content, list):
            parts = [
                {**part, "text": separated(part["text"])}
                if isinstance(part, dict) and isinstance(part.get("text"), str)
                else part
                for part in content
            ]
            message = {**message, "content": parts}
        messages.append(message)
    return Chat(messages, arguments)


class ChatTemplate:
    """The chat templates of one model.

    Args:
        templates: name → Jinja source; ``default`` is used, or ``tool_use`` for requests with tools.
        special: special tokens by their names, which templates read.
    """

    def __init__(self, templates: Mapping[str, str], special: Mapping[str, str]) -> None:
        self._templates = dict(templates)
        self._special = dict(special)

    def special_texts(self) -> list[str]:
        return [text for text in self._special.values() if text]

    def render(self, chat: Chat) -> str:
        """Render the prompt as text, with special tokens spelled out; encode it without adding any.

        Raises:
            RequestError: the model has no template, or the template refuses.
        """
        template = self._chosen(chat)
        self._check(chat, template)
        messages = chat.messages
        if not _mentions_name(template, "developer"):
            # OpenAI's name for the system's message; templates that do not know it leave it out.
            messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
        rendered = self._render_messages(template, messages, chat.arguments)
        if not rendered:
            raise RequestError("messages: the chat template makes an empty prompt of them")
        self._check_shown(template, messages, chat)
        return rendered

    def _render_messages(
        self, template: str, messages: list[dict[str, Any]], arguments: Mapping[str, Any]
    ) -> str:
        # The import takes half a second, which a server without messages does not need.
        from transformers.utils.chat_template_utils import render_jinja_template

        prompt = {"add_generation_prompt": not arguments.get("continue_final_message")}
        try:
            rendered, _ = render_jinja_template(
                conversations=[messages], chat_template=template, **{**self._special, **prompt, **arguments}
            )
        except Exception as e:  # the template's code may raise anything for this request
            reason = str(e).strip().split("\n", 1)[0]
            raise RequestError(f"messages: the chat template refuses: {reason or type(e).__name__}") from e
        return str(rendered[0])

    def _check_shown(self, template: str, messages: list[dict[str, Any]], chat: Chat) -> None:
        """Refuse messages that the template leaves out, as many do with roles that they do not know.

        A second prompt, with a mark in each one's place, tells: the text itself may be elsewhere, too.
        """
        marks = {
            number: f"message{number}of{len(messages)}"
            for number, message in enumerate(messages)
            if message["role"] not in _ALWAYS_SHOWN and message.get("content")
        }
        if not marks:
            return
        marked = [_replace_content(m, marks.get(number)) for number, m in enumerate(messages)]
        try:
            rendered = self._render_messages(template, marked, chat.arguments)
        except RequestError:
            # A template that reads contents says nothing about marks.
            return
        for number, mark in marks.items():
            if mark not in rendered:
                raise RequestError(
                    f"messages[{number}].role: this model's chat template leaves out a message of role "
                    f"{chat.messages[number]['role']!r} here"
                )

    def _chosen(self, chat: Chat) -> str:
        if not self._templates:
            raise RequestError("messages: this model has no chat template; send text_input")
        if chat.arguments.get("tools") and "tool_use" in self._templates:
            return self._templates["tool_use"]
        template = self._templates.get("default")
        if template is None:
            names = ", ".join(sorted(self._templates))
            raise RequestError(
                f"messages: this model has no default chat template; its templates are {names}"
            )
        return template

    def _check(self, chat: Chat, template: str) -> None:
        """Refuse roles and arguments that the template does not read, as they would have no effect."""
        for number, message in enumerate(chat.messages):
            role = message["role"]
            if role not in ROLES and not _mentions_name(template, role):
                hint = suggest_name(role, ROLES, f"known are {', '.join(ROLES)}")
                raise RequestError(f"messages[{number}]: role {role!r} is unknown; {hint}")
            for name, value in message.items():
                # Ids that link messages to each other carry no meaning for a model.
                if value and name not in _MESSAGE and not _mentions_name(template, name):
                    raise RequestError(
                        f"messages[{number}].{name[:64]}: this model's chat template does not read it"
                    )
        for name, value in chat.arguments.items():
            if name in ARGUMENTS:
                if value is not None and not isinstance(value, ARGUMENTS[name]):
                    kind = with_article(ARGUMENTS[name].__name__)
                    raise RequestError(f"chat_template_args: {name} is not {kind}")
                if value and name in _OF_TEMPLATES and not _mentions_name(template, name):
                    raise RequestError(f"chat_template_args: this model's chat template does not read {name}")
            elif name in _OWN or name in self._special:
                raise RequestError(f"chat_template_args: {name} is set by the server")
            elif not _mentions_name(template, name):
                raise RequestError(f"chat_template_args: this model's chat template does not read {name}")
        both = chat.arguments.get("add_generation_prompt") and chat.arguments.get("continue_final_message")
        if both:
            raise RequestError(
                "chat_template_args: add_generation_prompt and continue_final_message exclude each other"
            )


def _replace_content(message: dict[str, Any], mark: str | None) -> dict[str, Any]:
    if mark is None:
        return message
    is_text = isinstance(message["content"], str)
    return {**message, "content": mark if is_text else [{"type": "text", "text": mark}]}


def _mentions_name(template: str, name: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", template)) and bool(name)


def load_chat_template(directory: Path) -> ChatTemplate:
    """Load the templates of a tokenizer's directory by transformers' rules; there may be no template.

    Raises:
        RepositoryError: a file is unreadable.
    """
    settings = _read_optional_object(directory / "tokenizer_config.json")
    templates: dict[str, str] = {}
    for source in (settings, _read_optional_object(directory / "chat_template.json")):
        template = source.get("chat_template")
        if isinstance(template, str):
            templates["default"] = template
        elif isinstance(template, list):
            templates |= {
                str(row["name"]): str(row["template"])
                for row in template
                if isinstance(row, dict) and {"name", "template"} <= set(row)
            }
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read_template_text(path)
    if (directory / "chat_template.jinja").is_file():
        templates["default"] = _read_template_text(directory / "chat_template.jinja")
    special = {**_read_optional_object(directory / "special_tokens_map.json"), **settings}
    return ChatTemplate(templates, _special_tokens(special))


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return ``bos_token`` and the like as texts; missing ones stay undefined, as in transformers."""
    tokens: dict[str, str] = {}
    for key, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens


def _read_template_text(path: Path) -> str:
    with refuse_damage(RepositoryError, path, "build the engine again"):
        return path.read_text("utf-8")


def _read_optional_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with refuse_damage(RepositoryError, path, "build the engine again"):
        settings = json.loads(path.read_text("utf-8"))
    return settings if isinstance(settings, dict) else {}
