"""Compare artefacts: unique names, speeds, and notes on figures that cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from enginix.errors import UsageError
from enginix.letter_case import camel_case_keys
from enginix.report.artefacts import Artefact, label_artefacts
from enginix.report.comparison.cells import REFERENCE
from enginix.report.gate_figures import GateFigures, MeasuredSpeeds
from enginix.report.model_origin import ModelOrigin


@dataclass(frozen=True)
class ArtefactComparison:
    """A comparison of artefacts.

    Attributes:
        notes: reasons why figures of two rows cannot be compared, and runtimes that are not verified.
        speed_on: the machine that speeds were measured on; None without speeds.
    """

    artefacts: tuple[Artefact, ...]
    notes: tuple[str, ...]
    speed_on: str | None

    @property
    def has_doubts(self) -> bool:
        return any(artefact.doubts for artefact in self.artefacts)

    def as_json(self) -> dict[str, Any]:
        """Return keys in camel case; figures that were not measured are null."""
        rows = [camel_case_keys(asdict(artefact)) for artefact in self.artefacts]
        return {"artefacts": rows, "notes": list(self.notes), "speedOn": self.speed_on}


def compare_artefacts(
    artefacts: Sequence[Artefact], speeds: MeasuredSpeeds | None = None
) -> ArtefactComparison:
    """Compare artefacts: give them unique names, add speeds, and note figures that cannot be compared.

    Raises:
        UsageError: a speed of an artefact that is not compared.
    """
    named = tuple(_fill_baseline(a, artefacts) for a in label_artefacts(artefacts))
    if speeds is not None:
        strange = sorted(set(speeds.rates) - {a.name for a in named})
        if strange:
            names = ", ".join(repr(a.name) for a in named)
            raise UsageError(
                f"a speed of {strange[0]!r}, which is not compared", fix=f"the names are: {names}"
            )
        # One setting for all: what was measured in another is left out.
        named = tuple(
            replace(a, speed=speeds.rates.get(a.name), bench=None, bench_refusal=None) for a in named
        )
    notes = (*_list_notes(named), *_list_speed_notes(named))
    return ArtefactComparison(named, notes, _describe_setting(named) if speeds is None else speeds.on)


def _describe_setting(artefacts: Sequence[Artefact]) -> str | None:
    """Return the machine and load of all measurements; None where they differ or none is there."""
    settings = {f"{a.bench.machine}: {a.bench.load}" for a in artefacts if a.bench is not None}
    return settings.pop() if len(settings) == 1 else None


def _list_speed_notes(artefacts: Sequence[Artefact]) -> list[str]:
    notes = [f"The speed of {a.name} is not shown: {a.bench_refusal}." for a in artefacts if a.bench_refusal]
    for differ, groups in (
        ("on different machines", _group_by_key(artefacts, lambda a: a.bench.machine if a.bench else None)),
        ("with different loads", _group_by_key(artefacts, lambda a: a.bench.load if a.bench else None)),
    ):
        if len(groups) > 1:
            described = _join_groups(groups)
            notes.append(f"They were measured {differ}, so their speeds cannot be compared: {described}.")
    engines = [a for a in artefacts if a.what.endswith("engine") and not a.bench_refusal]
    holes = ", ".join(a.name for a in engines if a.bench is None)
    if holes and any(a.bench is not None for a in engines):
        notes.append(f"No speed was measured of {holes}: enginix bench DIR does.")
    return notes


def _fill_baseline(artefact: Artefact, artefacts: Sequence[Artefact]) -> Artefact:
    """Give the model that others were compared with the figures that it has by definition, or by theirs."""
    if artefact.what != "model" or artefact.measured is not None or artefact.origin is None:
        return artefact
    for other in artefacts:
        figures = other.measured
        if figures is None or figures.reference is None or figures.reference.differs(artefact.origin):
            continue
        baseline = GateFigures(
            REFERENCE,
            ratio=1.0,
            low=1.0,
            high=1.0,
            perplexity=figures.reference_perplexity,
            same=1.0,
            kl=0.0,
            score=figures.reference_score,
            questions=figures.questions,
            material=figures.material,
            reference=figures.reference,
        )
        return replace(artefact, measured=baseline)
    return artefact


def _list_notes(artefacts: Sequence[Artefact]) -> list[str]:
    notes = []
    origins = group_by_origin(artefacts)
    if len(origins) > 1:
        notes.append(f"These are of different models: {_join_groups(origins)}.")
    names_by_material = _group_by_key(
        artefacts, lambda a: a.measured.material if a.measured is not None else None
    )
    if len(names_by_material) > 1:
        short_materials = {material[:12]: names for material, names in names_by_material.items()}
        notes.append(
            "They were asked different questions, so their figures cannot be compared: "
            f"{_join_groups(short_materials)}."
        )
    notes += [f"{a.name}: {a.warning}." for a in artefacts if a.warning is not None]
    for artefact in artefacts:
        figures = artefact.measured
        reference = None if figures is None else figures.reference
        if reference is not None and artefact.origin is not None and reference.differs(artefact.origin):
            notes.append(
                f"{artefact.name} was compared with {reference}, and was made from {artefact.origin}."
            )
    return notes


def group_by_origin(artefacts: Sequence[Artefact]) -> dict[ModelOrigin, list[str]]:
    """Return the models that are known to differ, with the names of the artefacts made from each."""
    names_by_origin = dict[ModelOrigin, list[str]]()
    # The best identified first, so that an artefact with an incomplete origin joins a group of known origin.
    for artefact in sorted(artefacts, key=lambda a: a.origin is None or a.origin.commit is None):
        if (origin := artefact.origin) is not None:
            known_origin = next((o for o in names_by_origin if not origin.differs(o)), origin)
            names_by_origin.setdefault(known_origin, []).append(artefact.name)
    return names_by_origin


def _group_by_key(
    artefacts: Sequence[Artefact], key: Callable[[Artefact], str | None]
) -> dict[str, list[str]]:
    names_by_value = dict[str, list[str]]()
    for artefact in artefacts:
        if (value := key(artefact)) is not None:
            names_by_value.setdefault(value, []).append(artefact.name)
    return names_by_value


def _join_groups(groups: Mapping[Any, list[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
