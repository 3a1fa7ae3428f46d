"""Runtimes that the table does not have: like one of its rows, with another image and other versions.

A description says ``like``, ``image`` and ``versions``; nix/check/runtime.nix reads it in the same way, and
tests/python/engine_tensorrt/test_twin_runtimes.py holds the two together. What a description does not say is
unknown: nothing but search paths, interpreters and kinds is taken from the row that it is like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.manifest import NOT_VERIFIED
from enginix.tables import load_table
from enginix.wording import list_known, suggest_name

KEYS = ("like", "image", "versions")
VERSIONS = (
    "cuda",
    "driver",
    "modelopt",
    "nccl",
    "python",
    "tensorrt",
    "tensorrtLlm",
    "torch",
    "transformers",
    "tritonServer",
)
SUFFIX = "-unverified"
_NUMBER = r"(0|[1-9][0-9]*)"
_RELEASE = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:(a|b|rc){_NUMBER})?(?:\.(?:post|dev)[0-9]+)*", re.ASCII
)
# A word of a tag that begins with a release, as v1.3.0rc20 and trtllm1.3.0rc20.
_TAG_WORD = re.compile(rf"[A-Za-z]*({_RELEASE.pattern})(?:[A-Za-z].*)?", re.ASCII)
_IMAGE = re.compile(
    r"[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]+)?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+"
    r"(?::([A-Za-z0-9_][A-Za-z0-9_.-]*))?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_TEXT = re.compile(r"[0-9A-Za-z.,<>=!~+ -]{1,60}", re.ASCII)
# The last release with the engine path: 1.3.0rc20 (data/runtime/runtimes.json, its source).
_LAST_ENGINE_CANDIDATE = 20


def read_description(path: Path) -> dict[str, Any]:
    """Read a description's file.

    Raises:
        UsageError: unreadable, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(
            f"unreadable: {e}",
            where=path,
            fix='write {"like": "trtllm-1.4.0rc1", "image": "…", "versions": {"tensorrtLlm": "…"}}',
        ) from e
    return content


def make_unlisted_row(description: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Make the id and the row of a runtime that the table does not have.

    Returns:
        The id, which ends with ``-unverified``, and a row in the form of data/runtime/runtimes.json, with
        ``verified`` false and the description's own three keys under ``description``.

    Raises:
        UsageError: a key or version is unknown, missing, or contradicts another.
    """
    for key in description:
        if key not in KEYS:
            raise _refuse(f"unknown key {key!r}", list_known(str(key), KEYS))
    like, image, versions = (description.get(key) for key in KEYS)
    rows = load_table("runtimes")["runtimes"]
    imaged = sorted(name for name, row in rows.items() if "images" in row)
    if not isinstance(like, str) or like not in imaged:
        what = "a runtime without an image" if isinstance(like, str) and like in rows else "not a runtime"
        raise _refuse(f"like is {like!r}, {what}", list_known(str(like), imaged))
    base = rows[like]
    tag = _parse_image(image)
    checked = _check_versions({} if versions is None else versions)
    version = checked["tensorrtLlm"]
    named = _list_tag_versions(tag or "")
    if named and version not in named:
        raise _refuse(
            f"the image's tag says {named[0]}, versions.tensorrtLlm {version}",
            "make them the same version; or, where the tag's is another software's, name the image by its "
            "digest in place of the tag: NAME@sha256:…",
        )
    if base["enginePath"] and not has_engine_path(version):
        after = sorted(name for name in imaged if not rows[name]["enginePath"])
        raise _refuse(
            f"like {like} has the engine path, which TensorRT-LLM {version} has no more "
            "(removed after 1.3.0rc20)",
            f"use like = {after[-1]}",
        )
    if checked.get("tritonServer") and base["paths"]["triton"] is None:
        with_triton = ", ".join(name for name in imaged if rows[name]["paths"]["triton"])
        raise _refuse(
            f"versions.tritonServer is {checked['tritonServer']}, but images like {like} have no Triton",
            f"leave it out, or use like = {with_triton}",
        )
    triton = checked.get("tritonServer")
    reference = str(image)
    name = tag or "image"
    row = {
        "enginePath": base["enginePath"],
        "kinds": base["kinds"],
        **{key: checked.get(key) for key in VERSIONS if key != "tritonServer"},
        "tritonImages": [],
        "tritonServer": [triton] if triton else [],
        "platforms": base["platforms"],
        "defaultImage": name,
        "images": {name: {"reference": reference, "tritonServer": triton, "sizeGB": None, "hashes": {}}},
        "paths": base["paths"],
        "environment": base["environment"],
        "source": f"as described by its user, {NOT_VERIFIED}; paths and variables are those of {like}",
        "verified": False,
        "description": {"like": like, "image": reference, "versions": checked},
    }
    return f"trtllm-{version}{SUFFIX}", row


def has_engine_path(version: str) -> bool:
    """Tell whether a release of TensorRT-LLM has trtllm-build: up to 1.3.0rc20."""
    match = _RELEASE.fullmatch(version)
    if match is None:
        return False
    release = (int(match[1]), int(match[2]), int(match[3]))
    if release != (1, 3, 0):
        return release < (1, 3, 0)
    return match[4] in ("a", "b") or (match[4] == "rc" and int(match[5]) <= _LAST_ENGINE_CANDIDATE)


def _parse_image(image: Any) -> str | None:
    """Return an image's tag; None where only a digest names it."""
    match = _IMAGE.fullmatch(image) if isinstance(image, str) and len(image) <= 300 else None
    if match is None or (match[1] is None and "@" not in str(image)):
        raise _refuse(
            f"image is {image!r}",
            "pass a registry, a name and a tag or digest: nvcr.io/nvidia/tensorrt-llm/release:1.4.0rc2",
        )
    return match[1]


def _list_tag_versions(tag: str) -> list[str]:
    """Return the releases in a tag's words, of the form of TensorRT-LLM's: N.N.N, N.N.NrcN."""
    return [match[1] for word in re.split("[-_]", tag) if (match := _TAG_WORD.fullmatch(word)) is not None]


def _check_versions(versions: Any) -> dict[str, str]:
    if not isinstance(versions, Mapping):
        raise _refuse(f"versions is {versions!r}", 'pass an object such as {"tensorrtLlm": "1.4.0rc2"}')
    for name, value in versions.items():
        if name not in VERSIONS:
            raise _refuse(f"versions has the unknown name {name!r}", _suggest_version_name(str(name)))
        if not isinstance(value, str) or not _TEXT.fullmatch(value):
            raise _refuse(f"versions.{name} is {value!r}", 'pass a version as a text, such as "1.4.0rc2"')
    version = versions.get("tensorrtLlm")
    if version is None or not _RELEASE.fullmatch(version):
        raise _refuse(
            f"versions.tensorrtLlm is {version!r}",
            "pass TensorRT-LLM's version in the image, such as 1.4.0rc2; engines are held to it",
        )
    for name, form in (("driver", "590.48.01"), ("tritonServer", "2.71.0")):
        value = versions.get(name)
        if value is not None and not re.fullmatch(r"[0-9]+(\.[0-9]+){1,2}", value, re.ASCII):
            raise _refuse(f"versions.{name} is {value!r}", f"pass a version such as {form}")
    return dict(sorted(versions.items()))


def _suggest_version_name(name: str) -> str:
    known = {version.lower(): version for version in VERSIONS}
    near = known.get(name.lower())
    return f"did you mean {near}?" if near else suggest_name(name, VERSIONS, f"known: {', '.join(VERSIONS)}")


def _refuse(what: str, fix: str) -> UsageError:
    return UsageError(what, where="runtime description", fix=fix)
