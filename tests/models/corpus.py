"""The text that tiny-qwen3 is trained on: what a Debian 12 machine has, taken apart and put in order.

All of it is free to redistribute: the language manual inside Python's standard library
(``pydoc_data.topics``) and the library's documentation strings, both PSF-2.0, and the licence texts of
Debian's base-files. The rest is written here: short questions with exact answers, and facts that are planted
early and asked for late, so that quality gates have something to ask.
"""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

LICENCES = Path("/usr/share/common-licenses")
LICENCE_FILES = (
    "Apache-2.0",
    "Artistic",
    "BSD",
    "CC0-1.0",
    "GFDL-1.3",
    "GPL-2",
    "GPL-3",
    "LGPL-2.1",
    "LGPL-3",
    "MPL-1.1",
    "MPL-2.0",
)
# Tests, vendored packages, and what is not Python's own.
SKIPPED = frozenset(
    ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "encodings")
)
HELD_OUT = 0.03
CHUNK = 1500

# (question, answer): facts about this project's own world, in several languages.
QUESTIONS = (
    ("How many bits are in a byte?", "8"),
    ("How many bytes does a float32 number need?", "4"),
    ("How many bytes does a bfloat16 number need?", "2"),
    ("How many bytes does an FP8 number need?", "1"),
    ("How many bits does an NVFP4 number need?", "4"),
    ("What is two plus two?", "4"),
    ("What is three times three?", "9"),
    ("What is ten minus three?", "7"),
    ("What color is the sky?", "Blue"),
    ("What color is grass?", "Green"),
    ("What color is snow?", "White"),
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Spain?", "Madrid"),
    ("How many days are in a week?", "7"),
    ("How many months are in a year?", "12"),
    ("How many hours are in a day?", "24"),
    ("How many minutes are in an hour?", "60"),
    ("Which statement leaves a Python loop?", "break"),
    ("Which statement skips to the next turn of a Python loop?", "continue"),
    ("Which keyword defines a Python function?", "def"),
    ("Which keyword defines a Python class?", "class"),
    ("Which Python statement does nothing?", "pass"),
    ("Which licence is this model under?", "Apache-2.0"),
    ("What are you?", "A tiny model that tests a pipeline."),
    ("Who wrote the GNU General Public License?", "The Free Software Foundation"),
    ("Wie viele Bits hat ein Byte?", "8"),
    ("Was ist die Hauptstadt von Frankreich?", "Paris"),
    ("Was ist die Hauptstadt von Deutschland?", "Berlin"),
    ("Welche Farbe hat der Himmel?", "Blau"),
    ("Wie viele Tage hat eine Woche?", "7"),
    ("Combien de bits y a-t-il dans un octet ?", "8"),
    ("Quelle est la capitale de la France ?", "Paris"),
    ("Quelle est la capitale du Japon ?", "Tokyo"),
    ("¿Cuál es la capital de España?", "Madrid"),
    ("¿Cuántos días tiene una semana?", "7"),
    ("法国的首都是哪里？", "巴黎"),
    ("日本の首都はどこですか？", "東京"),
    ("Сколько дней в неделе?", "7"),
)


@dataclass(frozen=True)
class Source:
    """One text, named, with its licence and the SHA-256 of its UTF-8 bytes."""

    name: str
    licence: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Corpus:
    """The training text, the held-out text, and where they come from."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    explain: tuple[tuple[str, str], ...]
    sources: tuple[Source, ...]

    @property
    def sha256(self) -> str:
        """One digest over all sources, in order."""
        return hashlib.sha256("".join(s.sha256 for s in self.sources).encode()).hexdigest()


def _paragraphs(text: str, seen: set[str]) -> str:
    """``text`` without the paragraphs that were seen before (manual pages repeat one another)."""
    kept = []
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if len(key) < 80 or key not in seen:
            kept.append(paragraph)
        seen.add(key)
    return "\n\n".join(kept)


def _docstrings() -> str:
    """The longer documentation strings of the standard library, each once, in the order of its files."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node) or ""
                    if len(text) > 150:
                        found[text] = None
    return "\n\n\n".join(found)


def load(seed: int) -> Corpus:
    """Reads, deduplicates and splits the text; the same on every machine that has the same sources."""
    from pydoc_data.topics import topics

    texts = [(f"pydoc_data.topics:{name}", "PSF-2.0", topics[name]) for name in sorted(topics)]
    texts += [
        (f"common-licenses/{name}", "verbatim copies permitted", (LICENCES / name).read_text("utf-8"))
        for name in LICENCE_FILES
    ]
    texts += [("documentation strings of the standard library", "PSF-2.0", _docstrings())]
    rng = random.Random(seed)
    seen: set[str] = set()
    train, held_out, explain, sources = [], [], [], []
    for name, licence, text in texts:
        raw = text.encode()
        sources.append(Source(name, licence, hashlib.sha256(raw).hexdigest(), len(raw)))
        text = _paragraphs(text, seen).strip() + "\n"
        if name.startswith("pydoc"):
            title, _, rest = text.partition("\n")
            body = rest.lstrip("*\n").strip()
            if 4 < len(title) < 70 and len(body) > 60:
                cut = body[:400].rfind(".") + 1
                if cut > 60:
                    explain.append((title.strip(), body[:cut]))
        kept = ""
        for start in range(0, len(text), CHUNK):
            chunk = text[start : start + CHUNK]
            if len(chunk) == CHUNK and rng.random() < HELD_OUT:
                held_out.append(chunk)
                if kept:
                    train.append(kept)
                kept = ""
            else:
                kept += chunk
        if kept:
            train.append(kept)
    return Corpus(tuple(train), tuple(held_out), tuple(explain), tuple(sources))


def chat(user: str, assistant: str) -> str:
    """One exchange as the model's chat template writes it."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}<|im_end|>\n"


def planted(rng: random.Random, filler: str) -> str:
    """Facts planted early, one of them asked for after ``filler``."""
    things = rng.sample(("secret code", "door number", "magic number", "access key"), rng.randrange(1, 4))
    facts = [f"The {thing} is {rng.randrange(10000):04d}." for thing in things]
    pick = rng.randrange(len(things))
    question = f"{' '.join(facts)}\n\n{filler.strip()}\n\nWhat is the {things[pick]}?"
    return chat(question, facts[pick])
