"""Apply the rules between trtllm-build's options, from ``data/tensorrt/build_options.json``.

nix/check/options.nix applies the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginix.errors import UsageError
from enginix.kinds.tensorrt.build.build_subject import BuildSubject
from enginix.kinds.tensorrt.build.options import OptionValue
from enginix.tables import load_table

# Always written out, so that an engine does not depend on a version's defaults.
ALWAYS_SET: dict[str, OptionValue] = {
    "kvCacheType": "paged",
    "usePagedContextFmha": True,
    "useFp8ContextFmha": True,
}


def resolve_options(
    subject: BuildSubject,
    profile: Mapping[str, OptionValue],
    requested: Mapping[str, OptionValue],
    strategy: str = "checkpoint",
) -> dict[str, OptionValue]:
    """Return the options for the command line: the profile's as far as the rules allow, and the requested
    ones.

    Raises:
        UsageError: a requested option breaks a rule; names the rule.
    """
    settings = {**ALWAYS_SET, **profile, **requested}
    rows = load_table("build_options")["options"]
    for rule in load_table("build_options")["rules"]:
        why = _find_unmet_need(subject, strategy, settings, rule)
        if why is None:
            continue
        name = rule["option"]
        if name in requested:
            raise UsageError(
                f"is {requested[name]!r}: {why}", where=f"option {name}", fix="change it, or leave it out"
            )
        settings[name] = rule.get("becomes", "disable" if rows[name]["type"] == "enum" else False)
    return settings


def _spell_switch(value: Any) -> Any:
    return {True: "enable", False: "disable"}[value] if isinstance(value, bool) else value


def _find_unmet_need(
    subject: BuildSubject, strategy: str, settings: Mapping[str, OptionValue], rule: Mapping[str, Any]
) -> str | None:
    """Describe the unmet need of a rule; None if the rule does not apply or is met."""
    rows = load_table("build_options")["options"]

    def value(name: str) -> Any:
        return _spell_switch(settings.get(name, rows[name]["default"]))

    name, weights = rule["option"], subject.quantization or "NO_QUANT"
    if "is" in rule:
        in_play = value(name) == _spell_switch(rule["is"])
    elif "isNot" in rule:
        in_play = value(name) not in (None, rule["isNot"])
    else:
        in_play = settings.get(name) is not None
    in_play = in_play and (name in settings or not rule.get("given", False))
    for key, fact in (
        ("whenKvCaches", subject.kv_cache),
        ("whenQuantizations", weights),
        ("whenStrategies", strategy),
    ):
        in_play = in_play and (key not in rule or fact in rule[key])
    if not in_play or any(value(o) != v for o, v in rule.get("whenOption", {}).items()):
        return None
    if "refuse" in rule:
        return str(rule["refuse"])
    needs, only = rule.get("needs", {}), rule.get("only")
    sources = rule.get("needsAny", ())
    unmet_needs = {
        f"weights in {needs.get('quantizations')}": "quantizations" in needs
        and weights not in needs["quantizations"],
        f"SM in {needs.get('sm')}": "sm" in needs and not needs["sm"][0] <= subject.sm < needs["sm"][1],
        f"SM {needs.get('smFrom')} or later": subject.sm < needs.get("smFrom", 0),
        f"another GPU than SM {subject.sm}": subject.sm in needs.get("notSm", ()),
        f"a KV cache in {needs.get('kvCaches')}": "kvCaches" in needs
        and subject.kv_cache not in needs["kvCaches"],
        f"another KV cache than {subject.kv_cache}": subject.kv_cache in needs.get("notKvCaches", ()),
        "a tensor parallel size of at least 2": subject.tensor_parallel < needs.get("tensorParallelFrom", 0),
        f"an architecture of {needs.get('architectures')}": subject.architecture is not None
        and subject.architecture not in needs.get("architectures", [subject.architecture]),
        "num_eagle_layers in the checkpoint": "eagleLayers" in needs and subject.num_eagle_layers is None,
        f"one of {only}": only is not None and value(name) not in only,
        f"{' or '.join(sources)}": bool(sources) and all(settings.get(o) is None for o in sources),
        **{o: value(o) in (None, "disable") for o in rule.get("needsOn", ())},
        "no draft tokens": "noDraft" in needs and int(str(settings.get("maxDraftLen", 0))) > 0,
        **{f"{o} = {v}": value(o) != v for o, v in rule.get("needsOption", {}).items()},
    }
    missing = [what for what, lacks in unmet_needs.items() if lacks]
    return f"it needs {' and '.join(missing)}; {rule['why']}" if missing else None
