"""Every fenced block of the documentation is tagged, and run or evaluated by a test.

`nix` is evaluated by tests/nix/cases/docs.sh. Of `sh` and `console` each command of enginix is parsed by its
own parser, each target of make and each file is looked up; each is run, or is in a list with the reason.
`text` holds no commands.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from enginix import cli
from enginix.cli import command_parser, command_table
from enginix.gateway.keys import Keys
from enginix.gateway.spec import parse_gateway_spec

from .test_pages import PAGES, ROOT, read_prose

# tests/python/openai/test_reverse_proxy.py runs nginx and caddyfile.
TAGS = {"nix", "sh", "console", "text", "json", "python", "nginx", "caddyfile"}
# Programs that examples name, and why no test runs them with these words.
OTHER_PROGRAMS = {
    ".": "activates a virtual environment", "apt-get": "changes the machine", "base64": "a pipe",
    "cd": "changes the directory", "curl": "asks a server: tests/python/triton asks the same ones",
    "docker": "an image's runtime", "echo": "prints", "git": "another repository", "head": "a pipe",
    "install": "writes below /run",
    "journalctl": "a journal of systemd", "kubectl": "a cluster",
    "make": "its target is looked up", "nix": "a flake of the Hub, or a path of the store",
    "nix-collect-garbage": "empties the store", "nix-store": "a path of the store",
    "nixos-rebuild": "changes the machine", "pip": "an index", "python3": "its file is looked up",
    "python3.11": "its file is looked up", "skopeo": "a registry",
    "tar": "files of a checkout", "umask": "a mode",
}  # fmt: skip
# What reads the repository alone, and is run as it stands.
RUN = ("inspect tests/", "plan nix/", "target")
# Commands of enginix that no test of this file runs: their beginning, and why.
NOT_RUN = {
    "tritonserver": "downloads the server's wheel", "serve": "needs that server",
    "build ./checkpoint --kind tensorrt": "a GPU", "runtime pin": "a registry",
    "runtime predict": "needs TensorRT-LLM", "lock": "the Hub; tests/python/hub runs it over a local one",
    "fetch": "the Hub; tests/python/hub runs it over a local one",
    "bench": "a server; tests/python/speed", "up": "the Hub and a server; tests/python/up",
    "chat": "a terminal and a server",
    "completion": "tests/python/command asks the shells",
    "triton-repo ENGINE -o repository --rootfs": "a GPU's image",
    "triton-repo ./engine": "an rtx engine: tests/python/serve/test_rtx_served.py",
    "gate ./engine --reference ./tiny-qwen3": "a GPU; without one tests/python/serve/test_rtx_served.py",
}  # fmt: skip
# Page → what stands for the names that its commands use: a path of the repository, or the output of commands
# (of enginix, before the page's first). Pages with commands that take more than a second are slow.
TINY = "tests/models/tiny-qwen3"
MAKE_CHECKPOINT = f"convert {TINY} -o checkpoint"
MAKE_ENGINE = (
    MAKE_CHECKPOINT,
    f"build checkpoint --kind reference --model {TINY} --no-gates -o engine",
)
STAGES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "README.md": ({}, ()),
    "docs/tutorial/first-model.md": ({}, ()),
    "docs/how-to/gates.md": ({"model": TINY, "model-fp8": TINY}, (MAKE_CHECKPOINT,)),
    "docs/how-to/build-engines.md": ({"result": "engine", "model": TINY}, MAKE_ENGINE),
    "docs/how-to/upgrade.md": ({"result": "engine"}, MAKE_ENGINE),
    "docs/how-to/own-model.md": ({"my-model": TINY}, ()),
    "docs/how-to/quantize.md": ({"qwen3-8b": TINY}, ()),
    "docs/reference/checkpoints.md": ({"qwen3-32b-nvfp4": TINY}, ()),
    "docs/reference/memory-plan.md": ({}, ()),
    "docs/reference/triton.md": ({"ENGINE": "engine"}, MAKE_ENGINE),
    "docs/reference/trust.md": ({}, MAKE_ENGINE),
}
FAST = {"docs/reference/checkpoints.md", "docs/reference/memory-plan.md"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def list_blocks() -> Iterator[Block]:
    for page in PAGES:
        lines = page.read_text("utf-8").splitlines()
        start = None
        for number, line in enumerate(lines):
            fence = re.fullmatch(r" *(```+|~~~+) *(.*)", line)
            if fence is None:
                continue
            if start is None:
                start = number, fence[2]
            else:
                yield Block(page, start[0] + 1, start[1], "\n".join(lines[start[0] + 1 : number]))
                start = None
        assert start is None, f"{page}: a block has no end"


BLOCKS = list(list_blocks())


def of(*tags: str) -> list[Block]:
    return [block for block in BLOCKS if block.tag in tags]


def list_commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a block as words: lines joined, comments and redirections left out."""
    lines = block.text.splitlines()
    if block.tag == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    text = "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in lines).replace("\\\n", " ")
    # A quoted text may go over lines.
    text = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if set(word) <= set(";|&\n"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


def parse_enginix(words: list[str]) -> None:
    """Parse the words of a command of enginix by its own parser."""
    command, *rest = words
    parser = argparse.ArgumentParser(f"enginix {command}", exit_on_error=False)
    importlib.import_module(f"enginix.cli.{command_table.COMMANDS[command][0]}").add_arguments(parser)
    cut = next((i for i, word in enumerate(rest) if set(word) <= set("<>")), len(rest))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parser.parse_args(rest[:cut])
        except (SystemExit, argparse.ArgumentError) as e:
            raise AssertionError(f"enginix {shlex.join(words)}: {said.getvalue() or e}") from e


def test_every_block_is_tagged() -> None:
    assert len(BLOCKS) > 100
    assert [str(block) for block in BLOCKS if block.tag not in TAGS] == []


@pytest.mark.parametrize("block", of("sh", "console"), ids=str)
def test_commands_are_what_the_programs_take(block: Block) -> None:
    if block.tag == "sh":
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    commands = list(list_commands(block))
    assert commands
    made = {words[i + 1] for words in commands for i, word in enumerate(words) if word == "-o"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands:
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        program = words[0] if words else "export"
        if program == "enginix":
            parse_enginix(words[1:])
        elif program.startswith("$L/") or program == "export":
            continue
        else:
            assert program in OTHER_PROGRAMS, f"{block}: {program}"
        if program == "make":
            assert words[1] in targets, f"{block}: make {words[1]}"
        for word in words[1:]:
            path = word.partition("=")[2] if re.match(r"[A-Z]=", word) else word
            path = path.partition("::")[0]
            # An output is not there yet; a file of the repository is.
            if re.match(r"(tests|nix|python|demo)/", path) and path not in made:
                assert (ROOT / path).exists(), f"{block}: {path}"


def is_run(words: list[str]) -> bool:
    line = " ".join(words[1:])
    return words[0] == "enginix" and any(line == run or line.startswith(f"{run}") for run in RUN)


def find_reason(words: list[str]) -> str | None:
    """Return why no test runs a command of enginix; None if one does."""
    line = " ".join(words)
    return next((why for start, why in NOT_RUN.items() if f"{line} ".startswith(f"{start} ")), None)


def list_page_commands(page: str) -> list[list[str]]:
    blocks = [b for b in of("sh", "console") if str(b.page.relative_to(ROOT)) == page]
    found = [words for block in blocks for words in list_commands(block)]
    return [words[1:] for words in found if words[0] == "enginix"]


RUNNABLE = [
    (block, words) for block in of("sh", "console") for words in list_commands(block) if is_run(words)
]


@pytest.mark.parametrize(("block", "words"), RUNNABLE, ids=[f"{b}-{w[1]}" for b, w in RUNNABLE])
def test_commands_over_the_repository_are_run(
    block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they print is what the block after them shows, where there is one."""
    monkeypatch.chdir(ROOT)
    code = cli.main(words[1:])
    printed = capsys.readouterr().out
    after = BLOCKS[BLOCKS.index(block) + 1]
    shown = after.text.splitlines() if after.tag == "text" and after.page == block.page else []
    if not shown or after.line > block.line + len(block.text.splitlines()) + 8:
        assert code in (0, 1) and printed
        return
    output = [" ".join(line.split()) for line in printed.splitlines()]
    position = 0
    for number, line in enumerate(" ".join(line.split()) for line in shown):
        # Lines are left out only where the page says so.
        assert line == "…" or line in output[position:], line
        assert number == 0 or "…" in (line, shown[number - 1]) or line == output[position], line
        position = position if line == "…" else output.index(line, position) + 1


def test_something_is_run() -> None:
    assert len(RUNNABLE) >= 4


def test_every_command_is_run_or_has_a_reason() -> None:
    """A list that grows by itself would say nothing: each reason is of some command, each page is staged."""
    pages = {str(block.page.relative_to(ROOT)) for block in of("sh", "console")}
    left = {page: list_page_commands(page) for page in pages - set(STAGES)}
    assert [(page, words) for page, found in left.items() for words in found if not find_reason(words)] == []
    every = [words for page in pages for words in list_page_commands(page)]
    assert {find_reason(words) for words in every} - {None} == set(NOT_RUN.values())
    for page in STAGES:
        assert any(find_reason(words) is None for words in list_page_commands(page)), page


def ask_part(page: str) -> contextlib.AbstractContextManager[None]:
    """Leave the gates a part of their questions: tests/python/gates asks all of them."""
    if page in FAST:
        return contextlib.nullcontext()
    from tiny_model import ask_little

    return ask_little()


@pytest.fixture(scope="module")
def outputs() -> dict[tuple[str, ...], Path]:
    """What commands of several pages made: the commands up to each, and its output."""
    return {}


@pytest.mark.parametrize(
    "page", [page if page in FAST else pytest.param(page, marks=pytest.mark.slow) for page in STAGES]
)
def test_a_pages_commands_run_as_they_stand(
    page: str,
    outputs: dict[tuple[str, ...], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a directory with the repository's files, and the tiny model for each model that a page names.

    Where the pages begin alike, the first one's outputs are copied.
    """
    names, before = STAGES[page]
    for folder in ("tests", "nix", "python"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name, target in names.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_files(tmp_path)
    # What a page shows after a file's name is that file.
    shown = re.findall(r"`([\w.]+\.json)`:\n\n```json\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for name, text in shown:
        (tmp_path / name).write_text(text)
    commands = [shlex.split(line) for line in before] + list_page_commands(page)
    count, begin = 0, ()
    for words in commands:
        if find_reason(words):
            continue
        if "-o" in words:  # a page may show a command twice
            output_path = tmp_path / words[words.index("-o") + 1]
            shutil.rmtree(output_path) if output_path.is_dir() else output_path.unlink(missing_ok=True)
            for key in [key for key, path in outputs.items() if path == output_path]:
                del outputs[key]
            begin = (*begin, shlex.join(names.get(word.removeprefix("./"), word) for word in words))
            known = outputs.setdefault(begin, output_path)
            if known != output_path:
                shutil.copytree(known, output_path) if known.is_dir() else shutil.copy(known, output_path)
                count += 1
                continue
        expands = [str(tmp_path / w[2:]) if w.startswith("~/") else w for w in words]
        with ask_part(page):
            code = cli.main(expands)
        output = capsys.readouterr()
        # A plan's status says whether the model fits; the text after it is compared above.
        assert code == 0 or (words[0] == "plan" and code == 1), f"enginix {shlex.join(words)}: {output.err}"
        count += 1
    assert count > len(before)


def prepare_files(directory: Path) -> None:
    """Write what examples name: a question of one's own, a key, and who may sign."""
    # The first as a text goes on, the second as the tiny model answers in a chat.
    asked = {"The license grants": "you", "What is the capital of France?": "Paris"}
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in asked.items()]
    (directory / "questions.jsonl").write_text("\n".join(rows) + "\n")
    said = [{"role": "user", "content": 40 * "Where is it? "}, {"role": "assistant", "content": "There."}]
    (directory / "tickets.jsonl").write_text(100 * (json.dumps({"messages": said}) + "\n"))
    key = directory / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a", "-f", key], check=True)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (directory / "allowed_signers").write_text(f"a {public}\n")


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_texts_hold_no_commands(block: Block) -> None:
    """A command in a text would be in no test; help of commands has its examples, which are indented."""
    commands = "|".join(command_table.COMMANDS)
    if block.page.name != "cli.md":
        assert not re.search(rf"^(\$ |enginix ({commands}) |mk[A-Z]\w+ \{{$)", block.text, re.MULTILINE)


@pytest.mark.parametrize("block", of("json", "python"), ids=str)
def test_other_languages_are_parsed(block: Block) -> None:
    if block.tag == "json":
        assert json.loads(block.text)
    else:
        ast.parse(block.text)


def test_every_nix_block_is_evaluated(tmp_path: Path) -> None:
    """tests/nix/cases/docs.sh evaluates what docs.py writes: as many files as blocks."""
    spec = importlib.util.spec_from_file_location("docs_examples", ROOT / "tests/nix/docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(ROOT, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nix"))) == len(of("nix"))


def find_nix_options() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield where a command of Nix stands, its words before its options, and its options."""
    for page in [*PAGES, *sorted((ROOT / "nix").glob("*.nix"))]:
        text = re.sub(r"\n#? *(?=--)", " ", page.read_text("utf-8"))
        for match in re.finditer(r"(?:^|[\s`(#])nix ((?:[a-z-]+ ?)+[^\n`|);&]*)", text):
            words = match[1].partition(" -- ")[0].split()
            flags = [word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w=-]*", word)]
            if flags:
                yield str(page.relative_to(ROOT)), words, flags


@pytest.mark.skipif(shutil.which("nix") is None, reason="Nix is not installed")
def test_options_of_nix_are_known_to_the_oldest_supported_one() -> None:
    """Debian 12's Nix 2.8 knows fewer options than a newer one; the test asks the one that is here."""
    variables = {**os.environ, "NIX_CONFIG": "experimental-features = nix-command flakes"}
    done = subprocess.run(["nix", "__dump-args"], env=variables, capture_output=True, text=True, check=True)
    root = json.loads(done.stdout)
    found = list(find_nix_options())
    assert len(found) > 5
    unknown = []
    for where, words, flags in found:
        level, known = root, set()
        for word in words:
            known |= {f"--{name}" for name in level["flags"]}
            known |= {f"-{row['shortName']}" for row in level["flags"].values() if row.get("shortName")}
            if word not in level.get("commands", {}):
                break
            level = level["commands"][word]
        short = {f"-{letter}" for flag in flags if not flag.startswith("--") for letter in flag[1:]}
        long = {flag for flag in flags if flag.startswith("--")}
        unknown += [f"{where}: nix {' '.join(words)}: {flag}" for flag in sorted((long | short) - known)]
    assert unknown == []


def test_commands_of_other_programs_are_listed() -> None:
    """README and how-to pages: who runs a command, or why no test does; each row is of a command there."""
    text = (ROOT / "docs/explanation/verification.md").read_text("utf-8")
    section = text.partition("\n## Commands of README and how-to pages\n")[2].partition("\n## ")[0]
    run, not_run = section.split("And these none:")
    for line in run.splitlines():
        for place in re.findall(r"`(tests/[^`]+)`", line.rpartition("|")[0].rpartition("|")[2]):
            assert (ROOT / place).exists(), place
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    listed = [command for cell, reason in rows for command in re.findall(r"`(.+?)`", cell) if reason.strip()]
    assert len(listed) == len(set(listed)) and "`" in run and "`" in not_run
    commands = [
        " ".join(words)
        for block in of("sh", "console")
        if str(block.page.relative_to(ROOT)).startswith(("README.md", "docs/how-to/", "docs/tutorial/"))
        for words in list_commands(block)
        if words[0] != "enginix"
    ]
    assert [c for c in commands if not any(c.startswith(beginning) for beginning in listed)] == []
    assert [b for b in listed if not any(c.startswith(b) for c in commands)] == []


def test_the_key_of_the_page_on_secrets_is_taken(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/secrets.md").read_text("utf-8")
    block = page.partition("## Write a key")[2].partition("```sh\n")[2].partition("```")[0]
    subprocess.run(["bash", "-ec", block.replace("/run/", f"{tmp_path}/")], check=True)
    models = {"tiny": [{"kind": "triton", "url": "http://127.0.0.1:8000", "model": "ensemble"}]}
    key_file = str(tmp_path / "secrets" / "gateway")
    spec = {"version": 1, "name": "gateway", "models": models, "keyFile": key_file}
    assert [caller.name for caller in Keys(parse_gateway_spec(spec, "test")).callers] == ["operator"]


def test_the_completion_of_the_page_is_installed(tmp_path: Path) -> None:
    """Into a home that has no folder of completions yet."""
    page = (ROOT / "docs/how-to/install.md").read_text("utf-8")
    line = next(line for line in page.splitlines() if line.startswith("enginix completion bash"))
    program = f'enginix() {{ {shlex.quote(sys.executable)} -m enginix "$@"; }}; '
    variables = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "python")}
    subprocess.run(["bash", "-o", "pipefail", "-ec", program + line], env=variables, check=True)
    assert "complete " in (tmp_path / ".local/share/bash-completion/completions/enginix").read_text()


def test_options_in_sentences_are_those_of_their_command() -> None:
    wrong = []
    for page in PAGES:
        for text in re.findall(r"`(enginix [^`]+)`", read_prose(page)):
            _, command, *words = text.split()
            options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", " ".join(words)))
            if command in command_table.COMMANDS:
                parser = command_parser.make_parser(
                    command, importlib.import_module(f"enginix.cli.{command_table.COMMANDS[command][0]}")
                )
                known = command_parser._list_options(parser)
                wrong += [(page.name, text) for option in options if option not in known]
    assert wrong == []
