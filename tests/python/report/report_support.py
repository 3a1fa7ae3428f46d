"""A page's parser that refuses what a page may not hold, and the content of a ``gates.json``."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "col"}


class Checker(HTMLParser):
    """Every tag is closed in order; addresses are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]
        assert tag not in ("script", "img", "link", "iframe", "object"), tag
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == [] and checker.links == [] and "http" not in page
    return checker


def told(text: str = "", passed: bool = True) -> dict[str, Any]:
    return {
        "format": 1,
        "passed": passed,
        "reference": {"repo": text},
        "layerErrors": [0.01, 0.02, 0.05],
        "bounds": {"format": "FP8", "reason": f"because {text}"},
        "material": {"sha256": "ab", "passages": 1, "prompts": 1, "questions": 1, "tokens": 9},
        "gates": {
            "agreement": {
                "passed": passed, "summary": f"agreed {text}", "top1": 0.9, "kl": 0.1,
                "byPosition": [{"from": n, "top1": 0.95 - n / 800, "tokens": 9} for n in (0, 32)],
            },
            "perplexity": {
                "passed": True, "summary": "fine", "ratio": 1.1, "ratioFound": 1.01, "interval": [0.99, 1.03],
                "found": 10.0, "reference": 9.9, "tokens": 9,
            },
            "smoke": {
                "passed": True, "summary": "", "answers": [{"prompt": text, "engine": text, "reference": "b"}]
            },
            "task": {
                "passed": True, "summary": "",
                "replies": [{"question": text, "answer": "4", "engine": text, "reference": "4",
                             "right": [False, True]}],
            },
        },
    }  # fmt: skip
