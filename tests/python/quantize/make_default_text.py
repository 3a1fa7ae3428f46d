"""Write calibration_default.jsonl and calibration.json of data/quantization from Python's own manual.

    python3.11 tests/python/quantize/make_default_text.py

The manual is under PSF-2.0. A document is one topic, cut to a length; topics that the gates compute
perplexity on (data/questions/gate_text.json) stay out, so that nothing is calibrated on what judges it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from pydoc_data import topics

DATA = Path(__file__).parents[3] / "python/enginix/data"
LONGEST = 12_000  # characters of a document
SHORTEST = 300


def judged() -> str:
    """The text of the gates, white space folded."""
    return " ".join(
        " ".join(row["text"].split()) for row in json.loads((DATA / "gate_text.json").read_text())["text"]
    )


def main() -> None:
    gates = judged()
    lines: list[str] = []
    files: dict[str, str] = {}
    seen: set[str] = set()  # some topics are one text under several names
    for name, text in sorted(topics.topics.items()):
        folded = " ".join(text.split())
        overlap = any(folded[i : i + 120] in gates for i in range(0, max(1, len(folded) - 120), 60))
        if len(text) < SHORTEST or overlap or text in seen:
            continue
        seen.add(text)
        source = f"pydoc_data.topics:{name}"
        files[source] = hashlib.sha256(text.encode()).hexdigest()
        row = {"language": "en", "source": source, "text": text[:LONGEST].strip()}
        lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True))
    content = "\n".join(lines) + "\n"
    (DATA / "calibration_default.jsonl").write_text(content, "utf-8")
    table = {
        "about": "Texts for calibration that ship with enginix, with the SHA-256 of their sources; "
        "written by tests/python/quantize/make_default_text.py.",
        "default": "manual",
        "texts": {
            "manual": {
                "file": "calibration_default.jsonl",
                "sha256": hashlib.sha256(content.encode()).hexdigest(),
                "size": len(content.encode()),
                "documents": len(lines),
                "languages": ["en"],
                "licence": "PSF-2.0",
                "attribution": "The Python language manual, Copyright Python Software Foundation; "
                "changed: topics cut to a length",
                "source": {
                    "module": f"pydoc_data.topics of Python {platform.python_version()}",
                    "files": files,
                },
            }
        },
    }
    (DATA / "calibration.json").write_text(
        json.dumps(table, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
