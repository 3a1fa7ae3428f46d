"""Makes docs/reference/cli.md, functions.md and runtimes.md, and the list of docs/explanation/kinds.md.

They come from the commands' help, the heads of nix/mk-*.nix, and tables.

    python tests/reference_pages.py            says which page is stale; exit status 1 where one is
    python tests/reference_pages.py --write    writes the pages

A test (tests/python/docs) fails where a page is stale.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "python"))

from enginix import cli  # noqa: E402
from enginix.cli import command_table  # noqa: E402
from enginix.errors import EXIT_CODES  # noqa: E402
from enginix.tables import load_table  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
WRITE = "python tests/reference_pages.py --write"
COLUMNS = "100"
PUBLISHED = ROOT / "tests" / "facts" / "published.json"
FIELD_NAMES = {
    "tensorrtLlm": "TensorRT-LLM",
    "tensorrt": "TensorRT",
    "tensorrtRtx": "TensorRT for RTX",
    "cuda": "CUDA",
    "driver": "least driver",
    "torch": "PyTorch",
    "transformers": "transformers",
    "modelopt": "ModelOpt",
    "nccl": "NCCL",
}


def render_help(words: list[str]) -> str:
    """Return the ``--help`` of a command, without the exit codes that each repeats."""
    printed = io.StringIO()
    settings = {
        "COLUMNS": COLUMNS,
        "NO_COLOR": "1",
        "HOME": "/home/you",
        "XDG_CACHE_HOME": "",
        "LC_ALL": "C.UTF-8",
    }
    with (
        mock.patch.dict(os.environ, settings),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        cli.main([*words, "--help"])
    text = printed.getvalue().partition("\nexit codes:")[0]
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def find_verbs(command: str) -> list[str]:
    """Return the sub-commands of a command, as ``pin`` of ``enginix runtime``."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"enginix.cli.{command_table.COMMANDS[command][0]}").add_arguments(parser)
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [verb for group in groups for verb in group.choices]


def render_cli() -> str:
    """Return the page of the commands."""
    parts = [
        "# Commands",
        f"Made from the commands' own help by `{WRITE}`; a test fails when it is stale.",
        "Every command has `--help`, and `--json` prints the result or the error as one JSON object.",
        "## Exit codes",
        "| status | meaning |\n|---|---|\n"
        + "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
    ]
    for command, (_, summary) in command_table.COMMANDS.items():
        note = ["Only builds call this command."] if command in command_table.INTERNAL_COMMANDS else []
        parts += [f"## enginix {command}", f"{summary[0].upper()}{summary[1:]}.", *note]
        parts.append(f"```text\n{render_help([command])}\n```")
        for verb in find_verbs(command):
            parts += [f"### enginix {command} {verb}", f"```text\n{render_help([command, verb])}\n```"]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class NixArgument:
    """One argument of a Nix function: its default as text (None where it is required) and its comment."""

    name: str
    default: str | None
    comment: str


def split_arguments(pattern: str) -> Iterator[NixArgument]:
    """Read the inside of an argument pattern, ``a, # comment\\n b ? { },``."""
    position, comment, item, depth = 0, [], "", 0
    while position < len(pattern):
        if pattern[position] == "#" and not item.strip():
            end = pattern.find("\n", position)
            comment.append(pattern[position + 1 : end].strip())
            position = end + 1
            continue
        if pattern[position] == '"':
            end = pattern.index('"', position + 1)
            while pattern[end - 1] == "\\":
                end = pattern.index('"', end + 1)
            item += pattern[position : end + 1]
            position = end + 1
            continue
        character = pattern[position]
        depth += (character in "({[") - (character in ")}]")
        if character == "," and depth == 0:
            yield from _make_argument(item, comment)
            comment, item = [], ""
        else:
            item += character
        position += 1
    yield from _make_argument(item, comment)


def _make_argument(item: str, comment: list[str]) -> Iterator[NixArgument]:
    name, has_default, default = item.partition("?")
    if name.strip() and name.strip() != "...":
        words = " ".join(default.split())
        yield NixArgument(name.strip(), words if has_default else None, " ".join(comment))


PATTERN = re.compile(r"^( *)\{ *\n((?:\1 +\S.*\n|\n)*?)\1\}(?:@\w+)?:", re.MULTILINE)
# What a file of nix/ takes from the scope, in place of arguments of a function.
SCOPE = {"lib", "pkgs", "check"}


def read_patterns(path: Path) -> list[list[NixArgument]]:
    """Return the argument patterns of a file's function: not the scope's, and not those within its body."""
    patterns = [
        (found[1], list(split_arguments(found[2]))) for found in PATTERN.finditer(path.read_text("utf-8"))
    ]
    own = [(indent, p) for indent, p in patterns if p and not SCOPE & {argument.name for argument in p}]
    return [p for indent, p in own if indent == own[0][0]]


def render_patterns(patterns: list[list[NixArgument]]) -> list[str]:
    """Return each pattern as a list: name, default, comment."""
    parts = []
    for number, pattern in enumerate(patterns):
        if number:
            parts.append("Or:")
        lines = []
        for argument in pattern:
            default = "required" if argument.default is None else f"default `{argument.default}`"
            comment = f": {argument.comment}" if argument.comment else ""
            lines.append(_wrap_item(f"`{argument.name}` ({default}){comment}"))
        parts.append("\n".join(lines))
    return parts


def read_kinds() -> dict[str, list[str]]:
    """Return each kind of engine with the arguments of mkTritonRepo that it takes, from nix/kinds."""
    text = (ROOT / "nix/kinds/default.nix").read_text("utf-8")
    kinds = {}
    for kind, row in re.findall(r"^  (\w+) = \{\n(.*?)^  \};", text, re.MULTILINE | re.DOTALL):
        found = re.search(r"tritonRepo = \[(.*?)\]", row, re.DOTALL)
        kinds[kind] = [f"`{name}`" for name in re.findall(r'"(\w+)"', found[1])] if found else []
    return kinds


def _wrap_item(text: str) -> str:
    return textwrap.fill(
        text,
        int(COLUMNS),
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def render_functions() -> str:
    """Return the page of the Nix functions."""
    parts = [
        "# Nix functions",
        f"Made from the heads of `nix/mk-*.nix` by `{WRITE}`; a test fails when it is stale.",
        "The functions are in `enginix.legacyPackages.<system>`, and in `enginix.lib.mkLib pkgs` over a\n"
        "package set of your own. An unknown argument is refused with the nearest known one. A comment may\n"
        "hold for the arguments below it as well.",
    ]
    for path in sorted((ROOT / "nix").glob("mk-*.nix")):
        text = path.read_text("utf-8")
        head = []
        for line in text.splitlines():
            if not line.startswith("#"):
                break
            head.append(line.removeprefix("#").removeprefix(" "))
        signature, _, about = "\n".join(head).partition("\n")
        parts += [f"## {signature.split(' ::')[0]}", f"```text\n{signature}\n```"]
        parts += [_fence_indented(about.strip())] if about.strip() else []
        parts += render_patterns(read_patterns(path))
        name = signature.split(" ::")[0]
        if name == "mkEngine":
            for kind in read_kinds():
                parts += [f'### mkEngine {{ kind = "{kind}"; }}']
                parts += render_patterns(read_patterns(ROOT / "nix/kinds" / kind / "default.nix"))
        if name == "mkTritonRepo" and any(read_kinds().values()):
            parts.append("Arguments by kind of engine:")
            rows = [f"{kind}: {', '.join(names)}" for kind, names in read_kinds().items() if names]
            parts.append("\n".join(map(_wrap_item, rows)))
    return "\n\n".join(parts) + "\n"


def _fence_indented(text: str) -> str:
    """Return the text with its indented lines as code."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        if line.startswith("  ") != fenced and (fenced or line.strip()):
            lines.append("```text" if not fenced else "```")
            fenced = not fenced
        lines.append(line.removeprefix("  ") if fenced else line)
    return "\n".join([*lines, *(["```"] if fenced else [])])


def render_runtimes() -> str:
    """Return the page of the runtimes: each field of the table with its source."""
    table, published = load_table("runtimes"), json.loads(PUBLISHED.read_text("utf-8"))
    read = load_table("llm_args")["read"]
    rows = [
        f"| `{name}` | {', '.join(row['kinds'])} | {_describe_tensorrt(row)} | {row.get('driver') or '?'} | "
        f"{'-' if 'llmapi' not in row['kinds'] else 'read' if name in read else 'not read'} |"
        for name, row in table["runtimes"].items()
        if name != "reference"
    ]
    parts = [
        "# Runtimes",
        f"Made from `data/runtime/runtimes.json` by `{WRITE}`; a test fails\n"
        "when it is stale. `?`: learnt nowhere. Where the text of a runtime's LLM arguments was not read,\n"
        "they are passed on, with a warning where they differ from the texts that were. An image that is\n"
        "not here: [Use another image](../how-to/build-engines.md#use-another-image).",
        "| runtime | kinds | TensorRT | driver | LLM arguments |\n|---|---|---|---|---|\n" + "\n".join(rows),
    ]
    for name, row in table["runtimes"].items():
        if name != "reference":
            parts += [
                f"## {name}",
                _wrap_text(f"{row['source'][0].upper()}{row['source'][1:]}."),
                _render_runtime(row),
            ]
    newest = published["newest"]
    lines = [
        f"`{name}` {newest[name]['stable']}"
        + ("" if newest[name]["any"] == newest[name]["stable"] else f", candidate {newest[name]['any']}")
        for name in ("tensorrt-llm", "tensorrt-edgellm", "nvidia-modelopt", "tensorrt")
    ]
    parts += [
        "## Sources",
        "\n".join(_wrap_item(f"{key}: {text}") for key, text in table["sources"].items()),
        "## Newest that pip finds",
        f"On {published['read']}, in the registry that pip was set to. A mirror may lack newer\n"
        "releases: Edge-LLM 0.11.1 and 0.12.0 are on NVIDIA's release pages and were not in this one.",
        "\n".join(map(_wrap_item, lines)),
        "`make facts` compares the tables with what pip's registry has, and says what is older,\n"
        "what contradicts, and from where it knows. `make facts RECORD=1` keeps what it read in\n"
        "`tests/facts/published.json`, which a test compares with the tables. Run it before a release, and\n"
        "when NVIDIA releases one of these; a new row names the source of each field, or leaves it null.",
    ]
    return "\n\n".join(parts) + "\n"


def _describe_tensorrt(row: dict[str, Any]) -> str:
    """Return the version; ``none`` where the package requires no TensorRT."""
    none = row["sources"]["enginePath"] == "package" and not row["enginePath"]
    for_rtx = f"for RTX {row['tensorrtRtx']}" if "tensorrtRtx" in row else None
    return str(row.get("tensorrt") or for_rtx or ("none" if none else "?"))


def _render_runtime(row: dict[str, Any]) -> str:
    items = []
    for field in FIELD_NAMES:
        if (value := row.get(field)) is not None:
            items.append(f"{FIELD_NAMES[field]}: `{value}` ({row['sources'][field]})")
    for tag, image in row.get("images", {}).items():
        known = [
            f"{what} for {', '.join(systems)}"
            for what in ("hash", "digest")
            if (systems := [s for s, public in image["hashes"].items() if public[what]])
        ]
        size = f", {image['sizeGB']} GB" if image["sizeGB"] else ""
        public = "; ".join(known) or "none"
        items.append(f"image `{tag}`: `{image['reference']}`{size}; public: {public}")
    return "\n".join(map(_wrap_item, items))


def _wrap_text(text: str) -> str:
    return textwrap.fill(text, int(COLUMNS), break_long_words=False, break_on_hyphens=False)


def render_kinds() -> str:
    """Return the page that compares the kinds, with its list from data/report/kind_comparison.json.

    Raises:
        KeyError: an aspect lacks a kind of data/report/kinds.json.
    """
    kinds = load_table("kinds")["kinds"]
    lines = []
    for aspect, row in load_table("kind_comparison")["aspects"].items():
        lines.append(f"- {aspect}")
        for kind in kinds:
            item = textwrap.wrap(
                f"`{kind}`: {row[kind]}",
                int(COLUMNS),
                initial_indent="  - ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines += item
    page = (REFERENCE / KINDS).read_text("utf-8")
    head, _, rest = page.partition("<!-- kinds -->\n")
    _, _, tail = rest.partition("<!-- /kinds -->\n")
    return f"{head}<!-- kinds -->\n" + "\n".join(lines) + f"\n<!-- /kinds -->\n{tail}"


KINDS = "../explanation/kinds.md"
PAGES = {
    "cli.md": render_cli,
    "functions.md": render_functions,
    "runtimes.md": render_runtimes,
    KINDS: render_kinds,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the pages")
    args = parser.parse_args()
    stale = False
    for name, render in PAGES.items():
        path, text = REFERENCE / name, render()
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale = True
        if args.write:
            path.write_text(text, "utf-8")
        sys.stdout.write(
            f"{path.resolve().relative_to(ROOT)}: {'written' if args.write else f'stale; {WRITE}'}\n"
        )
    return int(stale and not args.write)


if __name__ == "__main__":
    sys.exit(main())
