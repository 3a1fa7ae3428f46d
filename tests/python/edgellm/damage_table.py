"""The table of damages in docs/reference/edgellm.md: what notices each, in every number format.

python tests/python/edgellm/damage_table.py NAME=FILE…      # damage.py's output of each format, into the page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/reference/edgellm.md"
BEGIN, END = "<!-- damages: tests/python/edgellm/damage_table.py -->", "<!-- end of damages -->"
COLUMNS = ("bf16", "fp8", "nvfp4", "int4_awq", "int8_sq")
Found = Mapping[str, Mapping[str, str] | None]


def make_rows(found: Found) -> dict[str, str]:
    """Return damage → who noticed it: checks, gate, both or nothing; without what an export does not have."""
    words = {(): "nothing", ("checks",): "checks", ("gate",): "gate", ("checks", "gate"): "both"}
    return {name: words[tuple(sorted(who))] for name, who in found.items() if who is not None}


def format_table(columns: Mapping[str, Mapping[str, str]]) -> str:
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [f"| damage | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(columns[c].get(name, '') for c in COLUMNS)} |")
    return "\n".join(lines)


def read_rows(page: str) -> dict[str, dict[str, str]]:
    """Return damage → column → cell of the page's table."""
    lines = page.split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(COLUMNS, row[1:], strict=True)) for row in cells}


if __name__ == "__main__":
    files = dict(word.split("=", 1) for word in sys.argv[1:])
    columns = {name: make_rows(json.loads(Path(files[name]).read_text())) for name in COLUMNS}
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{format_table(columns)}\n\n{END}{rest.partition(END)[2]}")
