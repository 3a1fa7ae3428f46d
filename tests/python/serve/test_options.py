"""The one check of options, over tritonserver's table."""

from __future__ import annotations

import pytest

from enginix.errors import UsageError
from enginix.serve import flags


def test_each_is_spelled_as_its_program_takes_it() -> None:
    asked = ["log-format=ISO8601", "metrics-config=a=1", "--http-thread-count=4", "metrics-config=b=2"]
    assert flags.check_triton_flags(asked, "2.68.0") == (
        "--log-format=ISO8601",
        "--metrics-config=a=1",
        "--metrics-config=b=2",
        "--http-thread-count=4",
    )


@pytest.mark.parametrize("text", ["", "=", "--", "no-such-option=1", "host", "http-max-input-size"])
def test_what_is_no_option_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--triton-flag"):
        flags.check_triton_flags([text], "2.71.0")


@pytest.mark.parametrize("value", ["", "-1", " 1", "1.0", "0x1", "٣", "1\n", "1" * 40])
def test_a_number_is_of_plain_digits(value: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        flags.check_triton_flags([f"http-max-input-size={value}"], "2.71.0")


def test_zero_is_a_number() -> None:
    assert flags.check_triton_flags(["http-thread-count=0"], "2.68.0") == ("--http-thread-count=0",)


def test_a_later_version_is_named() -> None:
    with pytest.raises(UsageError, match=r"2\.(59|70)\.0 brought it"):
        flags.check_triton_flags(["http-max-input-size=1"], "2.51.0")
    expected = ("--http-max-input-size=1",)
    assert flags.check_triton_flags(["http-max-input-size=1"], "2.71.0") == expected


def test_what_is_never_to_be_set_asks_for_no_later_runtime() -> None:
    with pytest.raises(UsageError, match="not to be set") as e:
        flags.check_triton_flags(["allow-client-shm=true"], "2.64.0")
    assert "later" not in str(e.value.fix)


def test_twice_is_refused_where_once_is_all() -> None:
    with pytest.raises(UsageError, match="given twice"):
        flags.check_triton_flags(["http-thread-count=1", "--http-thread-count=1"], "2.68.0")
