"""Artefacts as a comparison needs them: what each is, what it takes, and what was measured of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.errors import ManifestError, ModelError
from enginix.files import sha256_file
from enginix.hub.facts import FILES, model_facts
from enginix.manifest import Manifest
from enginix.model.jsonfile import read_object
from enginix.report import measured
from enginix.report.measured import Measured
from enginix.report.origin import Origin, origin_of, printable, text
from enginix.report.stored import Stored, stored
from enginix.tables import table
from enginix.wording import with_article

COMPARED = ("model", "quantized-model", "checkpoint", "export", "engine")
# kind of engine → where its weights lie; in the others they are inside compiled files, or not there
WEIGHTS = {"reference": "checkpoint", "llmapi": "model"}
UNQUANTIZED_BITS = 15.0  # a matrix whose weights take fewer is quantized


@dataclass(frozen=True)
class Artefact:
    """One row.

    Attributes:
        what: ``reference engine``, ``checkpoint``, …
        target: GPU that it is for; None where it runs anywhere.
        format: TensorRT-LLM's name of the quantization, or the dtype; None where nothing tells.
        size: bytes on disk, links followed.
        origin: the Hugging Face model that all began with; None where the artefact does not tell.
        measured: None where no gate was ever run.
        speed: tokens a second, of the file that was given; None: not measured.
        doubts: where it contradicts itself.
    """

    name: str
    what: str
    target: str | None
    format: str | None
    kv_cache: str | None
    size: int
    weights: Stored | None
    origin: Origin | None
    measured: Measured | None
    speed: float | None = None
    doubts: tuple[str, ...] = ()


def read(path: Path) -> Artefact:
    """One artefact from its directory.

    Raises:
        ModelError: no artefact there, or damaged weights.
        ManifestError: a manifest of something that cannot be compared, or an unreadable one.
        GateError: unreadable evidence.
    """
    if not path.is_dir():
        raise ModelError(
            "no such directory" if not path.exists() else "is a file; an artefact is a directory",
            where=str(path),
            fix="pass outputs of mkEngine, mkCheckpoint, mkQuantized or mkHfModel, or directories of models",
        )
    made = manifest.read(path) if (path / manifest.FILE).exists() else None
    if made is not None and made.artefact not in COMPARED:
        raise ManifestError(
            f"is {with_article(made.artefact)}, which has no weights to compare",
            where=str(path),
            fix="pass engines, checkpoints or models",
        )
    if made is not None and made.artefact == "engine" and made.kind not in table("kinds")["kinds"]:
        known = ", ".join(table("kinds")["kinds"])
        raise ManifestError(
            f"an engine of no known kind: {ascii(made.kind)[:40]}", where=str(path), fix=f"known: {known}"
        )
    held = _weights_directory(path, made)
    facts = {} if held is None else _facts(held)
    if made is None and not facts:
        raise ModelError(
            "no model, checkpoint or engine there", where=str(path), fix="see enginix compare --help"
        )
    weights = None if held is None else stored(held)
    found = measured.read(path / measured.FILE)
    claimed = made.model if made is not None else {}
    quantization = text(claimed.get("quantization")) or facts.get("quantization")
    dtype = text(claimed.get("dtype")) or facts.get("dtype")
    plain = dtype or ("not quantized" if "quantization" in claimed else None)
    artefact = Artefact(
        name=printable(manifest.name_of(path)),
        what=_what(path, made),
        target=_target(made),
        format=_algorithm(quantization) or plain,
        kv_cache=text(claimed.get("kvCacheQuantization")) or facts.get("kvCacheQuantization"),
        size=size_on_disk(path),
        weights=weights,
        origin=_origin(path, made),
        measured=found,
    )
    return replace(artefact, doubts=tuple(_doubts(artefact, made, facts)))


def _weights_directory(path: Path, made: Manifest | None) -> Path | None:
    if made is None or made.artefact in ("model", "quantized-model", "checkpoint"):
        return path
    below = WEIGHTS.get(made.kind or "")
    return path / below if below is not None and (path / below).is_dir() else None


def _facts(held: Path) -> dict[str, Any]:
    """``quantization``, ``kvCacheQuantization``, ``dtype`` as the weights' own configuration says them."""
    if not (held / "config.json").is_file():
        return {}
    raw = read_object(held / "config.json")
    if "architecture" not in raw:
        return model_facts({n: (held / n).read_bytes() for n in FILES if (held / n).is_file()}, str(held))
    quantization = raw.get("quantization")
    inside = quantization if isinstance(quantization, dict) else {}
    return {
        "dtype": text(raw.get("dtype")),
        "quantization": text(inside.get("quant_algo")),
        "kvCacheQuantization": text(inside.get("kv_cache_quant_algo")),
        "checkpoint": True,
    }


def _algorithm(name: str | None) -> str | None:
    """TensorRT-LLM's name; None for no quantization."""
    for known, row in table("quantization")["algorithms"].items():
        if name is not None and (name == known or name.lower() in row["aliases"]):
            return None if known == "NO_QUANT" else str(known)
    return name


def _what(path: Path, made: Manifest | None) -> str:
    if made is None:
        return "checkpoint" if (path / "rank0.safetensors").exists() else "model"
    if made.artefact == "engine":
        return f"{made.kind} engine"
    return {"quantized-model": "quantized model", "export": "edgellm export"}.get(
        made.artefact, made.artefact
    )


def _target(made: Manifest | None) -> str | None:
    target = {} if made is None else made.target
    return text(target.get("name")) or text(target.get("gpu"))


def _origin(path: Path, made: Manifest | None) -> Origin | None:
    """The model at the beginning of the chain of inputs; of a model without manifest, itself."""
    if made is None:
        config = path / "config.json"
        whole = _what(path, made) == "model" and config.is_file()
        return Origin(None, sha256_file(config)) if whole else None
    at: Mapping[str, Any] = made.inputs
    while isinstance(at.get("model"), dict):
        at = at["model"]
    return origin_of(at)


def size_on_disk(path: Path) -> int:
    """Bytes of all files below, links followed, each file once; a link in a circle ends there."""
    total, seen = 0, set[tuple[int, int]]()

    def once(one: Path) -> os.stat_result | None:
        try:
            status = one.stat()
        except OSError:  # a link to nothing takes no room
            return None
        key = (status.st_dev, status.st_ino)
        if key in seen:
            return None
        seen.add(key)
        return status

    once(path)
    for directory, below, files in os.walk(path, followlinks=True):
        below[:] = [name for name in below if once(Path(directory, name)) is not None]
        total += sum(s.st_size for name in files if (s := once(Path(directory, name))) is not None)
    return total


def _doubts(artefact: Artefact, made: Manifest | None, facts: Mapping[str, Any]) -> list[str]:
    found = list(artefact.measured.doubts) if artefact.measured is not None else []
    if made is not None and "quantization" in facts and "quantization" in made.model:
        claims, holds = (_algorithm(text(d["quantization"])) for d in (made.model, facts))
        if claims != holds:
            said, read_back = (name or "not quantized" for name in (claims, holds))
            found.append(f"its manifest says {said}, the configuration of its weights {read_back}")
    where = WEIGHTS.get(made.kind or "") if made is not None and made.artefact == "engine" else None
    if where is not None and artefact.weights is None:
        found.append(f"there are no weights in its {where}/")
    bits = None if artefact.weights is None else artefact.weights.matrix_bits
    row = table("quantization")["algorithms"].get(artefact.format or "", None)
    if bits is not None:
        if row is not None and (row["weightBits"] or 16) <= 8 and bits >= UNQUANTIZED_BITS:
            found.append(f"it says {artefact.format}, and its matrices take {bits:.1f} bits a weight")
        if row is None and artefact.format in ("float32", "float16", "bfloat16") and bits < UNQUANTIZED_BITS:
            found.append(f"it says {artefact.format}, and its matrices take {bits:.1f} bits a weight")
    return found + _about_gates(artefact, made)


def _about_gates(artefact: Artefact, made: Manifest | None) -> list[str]:
    if made is None or made.artefact != "engine":
        return []
    claims, evidence = made.results.get("gates"), artefact.measured
    if not isinstance(claims, dict):
        return []
    passed = {printable(name) for name, verdict in claims.items() if verdict == "passed"}
    if not passed:
        return []
    if evidence is None:
        return [f"its manifest says that gates passed, and there is no {measured.FILE}"]
    wrong = sorted(passed & set(evidence.failed)) or sorted(passed - set(evidence.gates))
    return [f"its manifest says that gate {wrong[0]} passed, and {measured.FILE} does not"] if wrong else []


def label(artefacts: Sequence[Artefact]) -> tuple[Artefact, ...]:
    """Gives each a name of its own: what differs is added where names are equal."""
    taken = list[Artefact]()
    for artefact in artefacts:
        name, same = artefact.name, [a for a in artefacts if a.name == artefact.name]
        for trait in ("format", "what", "target"):
            own = getattr(artefact, trait)
            alike = [a for a in same if getattr(a, trait) == own]
            if len(alike) < len(same):
                name, same = f"{name}, {own or f'no {trait}'}", alike
        number = 2
        while name in {a.name for a in taken}:
            name, number = f"{name.removesuffix(f' #{number - 1}')} #{number}", number + 1
        taken.append(replace(artefact, name=name))
    return tuple(taken)
