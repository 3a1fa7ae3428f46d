"""Judge a repository's layout from its listing and small files, before anything large is paid for.

Other layouts than transformers', an index that names missing shards, weights that nothing reads, a tokenizer
that only some kinds read: everything that a lock can tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from enginix.console import format_bytes
from enginix.errors import LockError
from enginix.hub import paths
from enginix.hub.api import RemoteFile
from enginix.model.jsonfile import parse_object
from enginix.model.other_layouts import explain_other_layout
from enginix.model.safetensors import INDEX, SINGLE, read_weight_map
from enginix.model.tokenizer_files import FAST_TOKENIZER, SLOW_TOKENIZERS
from enginix.wording import count_noun

ADAPTER, CONFIG = "adapter_config.json", "config.json"
# Small files that judging reads, whatever stores them.
READ_FILES = (INDEX, ADAPTER)
# transformers' names: model[.VARIANT][-00001-of-00002][.VARIANT].safetensors; a variant is a second
# precision of the same weights (save_pretrained's argument).
_WEIGHTS = re.compile(r"model(\.\w+)?(-\d+-of-\d+)?(\.\w+)?\.safetensors(\.index(\.\w+)?\.json)?")


def require_model_layout(listing: Sequence[RemoteFile], content: Mapping[str, bytes], repo: str) -> None:
    """Refuse a repository that is not a model in the Transformers layout.

    Trainers leave a config.json beside an adapter, and Mistral's layout may have one: there the names of the
    weights decide.

    Args:
        content: the adapter's configuration, if there is one.

    Raises:
        LockError: an adapter, Mistral's or Meta's own layout, a pipeline of diffusers, or pickles alone.
    """
    names = {f.path for f in listing}
    if CONFIG in names and any(_WEIGHTS.fullmatch(name) for name in names):
        return
    if CONFIG in names and not any(
        fnmatchcase(n, p) for n in names for p in ("adapter_model*", "consolidated*")
    ):
        return
    other = explain_other_layout(names)
    if ADAPTER in names:
        base = _read_base_model(content.get(ADAPTER), repo)
        raise LockError(
            f"a LoRA adapter{f' of {base}' if base else ''}, not a model",
            where=repo,
            fix="lock the base model; merge the adapter into it (PEFT's merge_and_unload), or lock the "
            'adapter alone, for lora.dirs of mkEngine, with --include "adapter_*"',
        )
    if other is not None and not any(name.endswith((".gguf", ".bin")) for name in names):
        raise LockError(other[0], where=repo, fix=other[1])


def explain_no_weights(files: Sequence[RemoteFile]) -> str:
    """Return why a repository has no weights that a lock takes, naming the format that it has."""
    names = [f.path for f in files]
    if gguf := [name for name in names if name.lower().endswith(".gguf")]:
        return f"no weights in safetensors; {gguf[0]} is GGUF, llama.cpp's format"
    if pickles := [name for name in names if paths.is_pickle(name)]:
        return f"no weights in safetensors; {pickles[0]} is a pickle and is refused"
    others = [name for name in names if name.endswith((".onnx", ".h5", ".msgpack"))]
    return f"no weights in safetensors; there is {others[0]}" if others else "no weights in safetensors"


def find_unread_weights(
    listing: Sequence[RemoteFile], chosen: Collection[str], content: Mapping[str, bytes], repo: str
) -> dict[str, str]:
    """Return the chosen files that repeat the weights and that no reader of the model opens, each with why.

    transformers and enginix read model.safetensors, else the shards of the index; a loader that opens every
    file would read the same weights twice.

    Raises:
        LockError: the index names a shard that is not there or not chosen, or only a variant is there.
        ModelError: the index is damaged.
    """
    present = {f.path for f in listing}
    known = [name for name in chosen if _WEIGHTS.fullmatch(name)]
    variants = sorted({variant for name in known if (variant := _find_variant(name))})
    plain = [name for name in known if not _find_variant(name)]
    if variants and not any(name.endswith(".safetensors") for name in plain):
        raise LockError(
            f"weights only as the variant {variants[0]!r} ({min(set(known) - set(plain))}), "
            f"without {SINGLE} or {INDEX}",
            where=repo,
            fix="lock another repository of the model, or save it without a variant (save_pretrained)",
        )
    unread = {
        name: f"the weights in another precision (variant {_find_variant(name)})"
        for name in known
        if _find_variant(name)
    }
    if SINGLE in plain:
        again = {name: f"{SINGLE} is read in its place" for name in plain if name != SINGLE}
        return unread | again
    if INDEX in plain and INDEX in content:
        shards = set(read_weight_map(parse_object(content[INDEX], f"{repo}: {INDEX}"), INDEX).values())
        _require_shards(shards, present, chosen, repo)
        again = {
            name: f"{INDEX} does not name it"
            for name in plain
            if name.endswith(".safetensors") and name not in shards
        }
        return unread | again
    return unread


def list_layout_notes(files: Sequence[RemoteFile]) -> list[str]:
    """Return notes about the files of a model's lock: what it lacks, and folders of unread weights."""
    notes, names = [], {f.path for f in files}
    if CONFIG not in names:
        notes.append(f"no {CONFIG} beside the weights: no engine can be built of these files alone")
    folders: dict[str, list[int]] = {}
    for f in files:
        if f.path.endswith(".safetensors") and "/" in f.path:
            folders.setdefault(os.path.dirname(f.path), []).append(f.size)
    if any(name.endswith(".safetensors") and "/" not in name for name in names):
        notes += [
            f"{folder}/ has {format_bytes(sum(sizes))} in {count_noun(len(sizes), 'file')} of weights that "
            f'no engine of this model reads; --exclude "{folder}/*" leaves them out'
            for folder, sizes in sorted(folders.items())
        ]
    top = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if top and CONFIG in names and not any(_WEIGHTS.fullmatch(name) for name in top):
        notes.append(f"weights only in {top[0]}, which is no name that transformers reads ({SINGLE})")
    if any(_WEIGHTS.fullmatch(name) for name in top):
        notes += [
            f"{f.path} ({format_bytes(f.size)}) is beside the model's weights, and transformers reads "
            f'only those; --exclude "{f.path}" leaves it out'
            for f in files
            if f.path in top and not _WEIGHTS.fullmatch(f.path)
        ]
    if CONFIG not in names and (inner := sorted(n for n in names if n.endswith(f"/{CONFIG}"))):
        notes.append(f"there is {inner[0]}, and a model below the top is not read: use another repository")
    shards = sorted(name for name in names if _WEIGHTS.fullmatch(name) and "-of-" in name)
    if shards and not {SINGLE, INDEX} & names:
        notes.append(
            f"{shards[0]} is one of several shards, and there is no {INDEX}: only TensorRT-LLM's PyTorch "
            "backend reads them so; save_pretrained of transformers writes an index"
        )
    if FAST_TOKENIZER not in names:
        others = [name for name in SLOW_TOKENIZERS if name in names]
        others += sorted(n for n in names if n.endswith(".tiktoken"))
        if others:
            notes.append(
                f"no {FAST_TOKENIZER}, which kind reference, gates and the gateway need; there is "
                f"{others[0]}. AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers writes it"
            )
        else:
            notes.append("no tokenizer: an engine of this model can be built, but not served for text")
    return notes


def _require_shards(shards: set[str], present: set[str], chosen: Collection[str], repo: str) -> None:
    if absent := sorted(shards - present):
        raise LockError(
            f"{INDEX} names {absent[0]}, which the repository does not have"
            + (f" ({len(absent)} such shards)" if len(absent) > 1 else ""),
            where=repo,
            fix="the upload is incomplete: lock another revision (--revision), or report it to the owner",
        )
    if left_out := sorted(shards - set(chosen)):
        raise LockError(
            f"{left_out[0]} is left out, and {INDEX} names it",
            where=repo,
            fix="take every shard: look at --include and --exclude",
        )


def _find_variant(name: str) -> str | None:
    match = _WEIGHTS.fullmatch(name)
    if match is None:
        return None
    variant = match[1] or match[3] or match[5]
    return variant[1:] if variant else None


def _read_base_model(data: bytes | None, repo: str) -> str | None:
    if data is None:
        return None
    base = parse_object(data, f"{repo}: {ADAPTER}").get("base_model_name_or_path")
    return base[:100] if isinstance(base, str) and base.isprintable() else None
