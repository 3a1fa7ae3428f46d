"""Names of gates and their bounds: ``data/judgement/gates.json``, which Nix reads as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from enginix.errors import UsageError
from enginix.tables import load_table
from enginix.wording import list_known


def list_gates(subject: Literal["checkpoint", "engine"]) -> tuple[str, ...]:
    """Return the gates that judge a checkpoint, or an engine in its own runtime, in their order."""
    return tuple(name for name, row in load_table("gates")["gates"].items() if subject in row["of"])


def resolve_bounds(
    requested_gates: Mapping[str, Any],
    gates: Sequence[str],
    find_defaults: Callable[[str], Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Return each requested gate's bounds: the defaults, with the requested changes.

    Args:
        requested_gates: gate → bounds to change, for instance ``{"perplexity": {"ratio": 1.02}}``.
        gates: those that exist here.
        find_defaults: gate → its bounds; None for one that is left out where it is not requested.

    Raises:
        UsageError: no such gate or bound, or a bound that is not a positive number.
    """
    out = {}
    for gate, overrides in requested_gates.items():
        if gate not in gates:
            raise UsageError(f"no gate {gate!r}", fix=list_known(str(gate), gates))
        if not isinstance(overrides, Mapping):
            raise UsageError(f"gate {gate} is {overrides!r}", fix=f'an object: {{"{gate}": {{}}}}')
        known = find_defaults(gate)
        for key, value in overrides.items():
            if key not in known:
                raise UsageError(
                    f"gate {gate} has no bound {key!r}", fix=f"it has: {', '.join(known) or 'none'}"
                )
            is_list = isinstance(known[key], list)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_list != isinstance(value, list) or not (is_list or (is_number and 0 < value < math.inf)):
                raise UsageError(f"bound {key} of gate {gate} is {value!r}", fix="a positive number")
        out[gate] = {key: value for key, value in {**known, **overrides}.items() if value is not None}
    return out
