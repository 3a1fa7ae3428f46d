"""The lock file: what it looks like, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from enginix.errors import LockError
from enginix.hub import paths
from enginix.hub.lock import EMPTY_SHA256, Lock, LockedFile, Selection, parse_lock

GOOD: dict[str, Any] = {
    "version": 1,
    "repo": "acme/tiny",
    "revision": "0" * 40,
    "license": "apache-2.0",
    "gated": False,
    "model": {"architecture": "Qwen3ForCausalLM", "layers": 4, "quantization": None},
    "files": {"config.json": {"sha256": "a" * 64, "size": 3}, "e.txt": {"sha256": EMPTY_SHA256, "size": 0}},
}


def changed(**keys: Any) -> str:
    return json.dumps({**GOOD, **keys})


def one_file(path: str) -> str:
    return changed(files={path: {"sha256": "a" * 64, "size": 1}})


def test_what_is_written_is_read_back_and_one_file_is_one_line() -> None:
    lock = parse_lock(json.dumps(GOOD), "x")
    text = lock.dump()
    assert parse_lock(text, "x") == lock and parse_lock(text, "x").dump() == text
    lines = text.splitlines()
    assert [line.strip()[:12] for line in lines if "sha256" in line] == ['"config.json', '"e.txt": {"s']
    assert json.loads(text) == GOOD


def test_the_order_of_files_is_that_of_their_paths_whoever_wrote_it() -> None:
    files = tuple(LockedFile(p, 1, "b" * 64) for p in ("z.json", "a.json", "m/a.json"))
    text = Lock("a/b", "1" * 40, None, False, {"b": 1, "a": 2}, files).dump()
    assert [f.path for f in parse_lock(text, "x").files] == ["a.json", "m/a.json", "z.json"]


def test_a_selection_is_kept_and_the_default_one_takes_no_room() -> None:
    lock = parse_lock(json.dumps(GOOD), "x")
    assert "select" not in lock.dump()
    picked = Selection("v1", ("*.json",), ("x*",), True)
    again = parse_lock(Lock(lock.repo, lock.revision, None, "auto", {}, lock.files, picked).dump(), "x")
    assert again.select == picked and again.gated == "auto"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "lock version None"),
        (changed(version=2), "lock version 2"),
        (changed(version=True), "lock version True"),
        (changed(extra=1), "unknown key 'extra'"),
        (changed(repo="a/b/c"), "is not owner/name"),
        (changed(repo="../x"), "is not owner/name"),
        (changed(repo=None), "is not owner/name"),
        (changed(revision="main"), "is not a commit of 40 hex digits"),
        (changed(revision="A" * 40), "is not a commit of 40 hex digits"),
        (changed(license=7), "is not a short text or null"),
        (changed(gated=True), "gated True"),
        (changed(model=[]), "not an object of plain facts"),
        (changed(model={"a": {"b": {"c": {"d": {"e": 1}}}}}), "not an object of plain facts"),
        (changed(model={"a": 1 << 80}), "not an object of plain facts"),
        (changed(files={}), "lists no files"),
        (changed(files={"a": 1}), "does not have exactly sha256 and size"),
        (changed(files={"a": {"sha256": "a" * 64}}), "does not have exactly sha256 and size"),
        (changed(files={"a": {"sha256": "A" * 64, "size": 1}}), "not 64 lower-case hex digits"),
        (changed(files={"a": {"sha256": "a" * 63, "size": 1}}), "not 64 lower-case hex digits"),
        (changed(files={"a": {"sha256": "a" * 64, "size": -1}}), "not a number of bytes"),
        (changed(files={"a": {"sha256": "a" * 64, "size": 1.0}}), "not a number of bytes"),
        (changed(files={"a": {"sha256": "a" * 64, "size": True}}), "not a number of bytes"),
        (changed(files={"a": {"sha256": "a" * 64, "size": 1 << 60}}), "not a number of bytes"),
        (changed(files={"a": {"sha256": "a" * 64, "size": 0}}), "contradict each other"),
        (changed(files={"a": {"sha256": EMPTY_SHA256, "size": 1}}), "contradict each other"),
        (changed(select={"include": "x"}), "select is not"),
        (changed(select={"include": [7]}), "not a pattern"),
        (one_file("weights.pt"), "pickle format"),
        (one_file("pytorch_model.BIN"), "pickle format"),
        (one_file("/etc/passwd"), "is absolute"),
        (one_file("C:/x"), "is absolute"),
        (one_file("../../etc/x"), "'..' segment"),
        (one_file("a/./b"), "'.' segment"),
        (one_file("a//b"), "empty segment"),
        (one_file("a/"), "empty segment"),
        (one_file("a\\b"), "backslash"),
        (one_file("a\nb"), "control or invisible character"),
        (one_file("a\u202eb"), "control or invisible character"),
        (one_file("a\ud800"), "control or invisible character"),
        (one_file(".GIT/config"), ".git segment"),
        (one_file("x" * 256), "longer than 255 bytes"),
        (one_file("a/" * 600 + "b"), "longer than 1024 characters"),
        (one_file("enginix.json"), "name of the manifest"),
        ('{"version": 1, "version": 1}', "appears twice"),
        ('{"version": NaN}', "not JSON"),
        ("[" * 200_000, "nested too deep"),
        ('{"version": ' + "9" * 10_000 + "}", "not JSON"),
    ],
)
def test_each_lie_is_named(text: str, says: str) -> None:
    with pytest.raises(LockError) as e:
        parse_lock(text, "x.lock.json")
    assert says in str(e.value) and str(e.value).startswith("x.lock.json: ") and e.value.fix


@pytest.mark.parametrize(
    "both",
    [("Model.json", "model.json"), ("a", "a/b"), ("a/B/c", "A/b/C"), ("\u00e9", "e\u0301"), ("A", "a/b")],
)
def test_names_that_one_file_system_confuses_are_refused(both: tuple[str, str]) -> None:
    entry = {"sha256": "a" * 64, "size": 1}
    with pytest.raises(LockError, match="cannot both exist"):
        parse_lock(changed(files={both[0]: entry, both[1]: entry}), "x")


def test_a_lock_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(LockError, match="longer than"):
        parse_lock(b" " * ((32 << 20) + 1), "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {"sha256": json_values | st.just("a" * 64), "size": json_values | st.integers(0, 100)}
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_text_crashes_the_parser(text: bytes | str) -> None:
    with pytest.raises(LockError):
        parse_lock(text, "x")


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)),
    json_values
    | st.dictionaries(st.text() | st.from_regex(r"[./a-z\\]{0,12}"), json_values | entries, max_size=4),
)
def test_a_lock_with_one_wild_value_is_refused_or_means_what_it_says(key: str, value: Any) -> None:
    try:
        text = json.dumps({**GOOD, key: value})
    except ValueError:
        return
    try:
        lock = parse_lock(text, "x")
    except LockError:
        return
    assert parse_lock(lock.dump(), "x") == lock
    for f in lock.files:
        assert paths.find_path_problem(f.path) is None


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"[./a-zA-Z\\ :]{1,30}", fullmatch=True))
@example("..")
@example("a/..")
@example("~/x")
def test_a_path_that_is_fine_stays_below_its_directory(path: str) -> None:
    if paths.find_path_problem(path) is not None:
        return
    from os.path import join, normpath

    full = normpath(join("/base", path))
    assert full.startswith("/base/") and full == f"/base/{path}"
    path.encode()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "A", "a/b", "A/B", "a/b/c", "b", "ß", "SS", "c/d"]), unique=True))
def test_two_paths_clash_exactly_when_one_would_overwrite_or_shadow_the_other(names: list[str]) -> None:
    def shadows(x: str, y: str) -> bool:
        x, y = x.casefold(), y.casefold()
        return x == y or x.startswith(f"{y}/") or y.startswith(f"{x}/")

    expected = any(shadows(x, y) for i, x in enumerate(names) for y in names[:i])
    assert (paths.find_path_clash(names) is not None) == expected
