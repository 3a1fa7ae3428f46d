"""Locks edited by hand, for the parser and for evaluation alike: what each must say of them.

    python tests/hub/lock_corpus.py > corpus.json

It maps names to {"lock": …, "takes": "both" | "python" | "neither"};
``python`` is what evaluation alone refuses: it has no tables of Unicode, and takes ASCII and common letters.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

EMPTY = hashlib.sha256().hexdigest()
DIGEST = "a" * 64
FILE = {"sha256": DIGEST, "size": 5}


def lock(files: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    head = {"version": 1, "repo": "acme/tiny", "revision": "b" * 40, "license": "mit", "gated": False}
    return {**head, "model": {}, "files": {"config.json": FILE} if files is None else files, **more}


def one(path: str) -> dict[str, Any]:
    return lock({path: FILE})


def two(first: str, second: str) -> dict[str, Any]:
    return lock({first: FILE, second: FILE})


def sized(size: Any, sha256: str = DIGEST, **more: Any) -> dict[str, Any]:
    return lock({"a": {"sha256": sha256, "size": size, **more}})


BOTH = {
    "good": lock(),
    "owner with dots": lock(repo="a.b/c.d"),
    "bare name": lock(repo="gpt2"),
    "repo .git": lock(repo="a/b.git"),
    "datasets/x is a model": lock(repo="datasets/x"),
    "a dash first": one("-rf"),
    "dollar": one("$(id)"),
    "antiquotation": one("${builtins.readFile /etc/passwd}"),
    "quote": one('a"b'),
    "semicolon": one("a;b|c&d"),
    "space": one("a b"),
    "device name": one("nul"),
    "the manifest's name below": one("a/enginix.json"),
    "longest segment": one("a" * 255),
    "a letter": one("ä/b c.json"),
    "letters that differ": two("ä.json", "ö.json"),
    "largest file": sized(1 << 50),
    "empty file": sized(0, EMPTY),
    "facts": lock(model={"architecture": "X", "layers": 4, "quantization": None, "a": {"b": [1, 2.5]}}),
    "select": lock(select={"revision": "v1", "include": ["*.json"], "exclude": [], "remoteCode": False}),
    "no licence": lock(license=None),
    "gated": lock(gated="auto"),
    "dataset": lock(type="dataset"),
}
PYTHON = {
    "emoji": one("\U0001f600.json"),
    "other letters": one("模型.json"),
    "many of them": one("/".join(["\U0001f600" * 60] * 16)),
    "a licence in other letters": lock(license="许可"),
}
NEITHER = {
    "parent": one("../x"),
    "absolute": one("/etc/x"),
    "empty segment": one("a//b"),
    "dot": one("./a"),
    "trailing slash": one("a/"),
    ".git": one(".git/config"),
    ".GIT": one("a/.GIT/x"),
    ".git with a joiner": one(".g\u200cit/config"),
    "case": two("A.json", "a.json"),
    "case of letters": two("Ä.json", "ä.json"),
    "composed and not": two("\u00e9.json", "e\u0301.json"),
    "sharp s": two("stra\u00dfe", "strasse"),
    "Kelvin": two("\u212a.json", "k.json"),
    "ligature": two("\ufb01le", "file"),
    "file and directory": two("a", "a/b"),
    "file and directory by case": two("A", "a/b"),
    "directory of letters": two("ä", "Ä/b"),
    "backslash": one("a\\b"),
    "null": one("a\u0000b"),
    "newline": one("a\nb"),
    "delete": one("a\x7fb"),
    "drive": one("C:x"),
    "drive of a letter": one("ä:x"),
    "right to left": one("a\u202etxt"),
    "joiner": one("a\u200db"),
    "byte order mark": one("\ufeffa"),
    "no-break space": one("a\u00a0b"),
    "private use": one("a\ue000"),
    "1,027 characters": one("a/" * 513 + "b"),
    "1,027 letters": one("ä/" * 513 + "b"),
    "segment of 256 bytes": one("a" * 256),
    "segment of 256 bytes in letters": one("ä" * 128),
    "segment of 256 bytes in emoji": one("\U0001f600" * 64),
    "bin": one("pytorch_model.bin"),
    "BIN": one("x.BIN"),
    "pt": one("x.pt"),
    "manifest": one("enginix.json"),
    "manifest by case": one("Enginix.JSON"),
    "manifest as directory": one("enginix.json/x"),
    "branch": lock(revision="main"),
    "upper-case commit": lock(revision="B" * 40),
    "short commit": lock(revision="b" * 39),
    "negative size": sized(-1),
    "float size": sized(5.0),
    "size as 1e3": sized(1e3),
    "true size": sized(True),
    "size 2^60": sized(1 << 60),
    "size 2^63": sized(1 << 63),
    "size as text": sized("5"),
    "upper-case digest": sized(5, DIGEST.upper()),
    "digest as SRI": sized(5, "sha256-" + DIGEST[:44]),
    "digest of nothing, size 5": sized(5, EMPTY),
    "size 0, digest of something": sized(0),
    "mode of a file": sized(5, mode=1),
    "file that is a text": lock({"a": "b"}),
    "file that is a list": lock({"a": []}),
    "unknown key": lock(evil=1),
    "repo as address": lock(repo="https://evil.co/a/b"),
    "repo above": lock(repo="../x"),
    "repo ..": lock(repo="a/.."),
    "repo of three": lock(repo="a/b/c"),
    "repo with --": lock(repo="a/b--c"),
    "repo with dash first": lock(repo="-x/y"),
    "repo with dash last": lock(repo="x/y-"),
    "repo with dot first": lock(repo="x/.y"),
    "repo with dot last": lock(repo="x/y."),
    "repo with dots": lock(repo="x/a..b"),
    "repo in letters": lock(repo="ac\u0301me/x"),
    "repo with newline": lock(repo="acme/x\n"),
    "long repo": lock(repo="a" * 97),
    "no repo": lock(repo=None),
    "facts too deep": lock(model={"a": {"b": {"c": {"d": {"e": 1}}}}}),
    "facts as list": lock(model=[]),
    "fact with escape": lock(model={"architecture": "X\u001b[31m"}),
    "fact with a joiner": lock(model={"architecture": "X\u200b"}),
    "long fact": lock(model={"architecture": "x" * 1001}),
    "licence with escape": lock(license="a\u001b[31m"),
    "licence as list": lock(license=["a"]),
    "long licence": lock(license="x" * 201),
    "gated true": lock(gated=True),
    "gated null": lock(gated=None),
    "gated by another word": lock(gated="x"),
    "version 2": lock(version=2),
    "version 1.0": lock(version=1.0),
    "version true": lock(version=True),
    "type space": lock(type="space"),
    "dataset without owner": lock(type="dataset", repo="gpt2"),
    "dataset with facts": lock(type="dataset", model={"layers": 1}),
    "select of another key": lock(select={"x": 1}),
    "select as list": lock(select=[]),
    "select of numbers": lock(select={"include": [1]}),
    "select with escape": lock(select={"include": ["\u001b"]}),
    "select of an empty word": lock(select={"revision": ""}),
    "select of another type": lock(select={"remoteCode": "yes"}),
    "no files": lock({}),
    "files as list": lock(files=None) | {"files": []},
}
CORPUS = {
    name: {"lock": value, "takes": takes}
    for takes, values in (("both", BOTH), ("python", PYTHON), ("neither", NEITHER))
    for name, value in values.items()
}

if __name__ == "__main__":
    # Later versions of Nix take no text with NUL at all; a name picks its lock alone.
    names = sys.argv[1:] or [name for name, case in CORPUS.items() if "\\u0000" not in json.dumps(case)]
    json.dump({name: CORPUS[name] for name in names}, sys.stdout, ensure_ascii=False)
