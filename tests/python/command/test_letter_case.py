"""Names in camelCase, snake_case and kebab-case, and suggestions of known names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enginix.letter_case import camel_case_keys, to_camel_case, to_kebab_case, to_snake_case
from enginix.wording import list_known, suggest_name


@given(st.from_regex(r"[a-z]+(_[a-z]+){0,4}", fullmatch=True))
def test_names_come_back(name: str) -> None:
    assert to_snake_case(to_camel_case(name)) == name
    assert to_camel_case(to_kebab_case(to_camel_case(name))) == to_camel_case(name)


def test_only_names_of_fields_change() -> None:
    value = {"max_seq_len": ({"top_1": 1},), "W4A16_AWQ": {"a/b_c.json": [None]}, "F8_E4M3": 2}
    assert camel_case_keys(value) == {
        "maxSeqLen": [{"top1": 1}],
        "W4A16_AWQ": {"a/b_c.json": [None]},
        "F8_E4M3": 2,
    }


def test_suggestions() -> None:
    assert suggest_name("h20o", ["h200", "b200"]) == "did you mean h200?"
    assert suggest_name("zzz", ["h200"], "see the table") == "see the table"
    assert list_known("h20o", ["h200", "b200"]) == "did you mean h200? known: h200, b200"
    assert list_known("zzz", ["h200", "b200"]) == "known: h200, b200"
