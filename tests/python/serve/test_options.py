"""The one check of options, over tritonserver's table and its OpenAI frontend's."""

from __future__ import annotations

import pytest

from enginix.errors import UsageError
from enginix.serve import flags, frontend
from enginix.serve.options import Program

BOTH = [flags.TRITONSERVER, frontend.MAIN]


def test_each_is_spelled_as_its_program_takes_it() -> None:
    asked = ["log-format=ISO8601", "metrics-config=a=1", "--http-thread-count=4", "metrics-config=b=2"]
    assert flags.checked(asked, "2.68.0") == (
        "--log-format=ISO8601",
        "--metrics-config=a=1",
        "--metrics-config=b=2",
        "--http-thread-count=4",
    )
    asked = ["default-max-tokens=4", "tool-call-parser=llama3"]
    assert frontend.checked(asked, "2.68.0") == ("--default-max-tokens", "4", "--tool-call-parser", "llama3")


@pytest.mark.parametrize("program", BOTH, ids=["tritonserver", "frontend"])
@pytest.mark.parametrize("text", ["", "=", "--", "no-such-option=1", "host", "http-max-input-size"])
def test_what_is_no_option_is_refused(program: Program, text: str) -> None:
    with pytest.raises(UsageError, match=program.option):
        program.checked([text], "2.71.0")


@pytest.mark.parametrize("value", ["", "-1", " 1", "1.0", "0x1", "٣", "1\n", "1" * 40])
@pytest.mark.parametrize("program", BOTH, ids=["tritonserver", "frontend"])
def test_a_number_is_of_plain_digits(program: Program, value: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        program.checked([f"http-max-input-size={value}"], "2.71.0")


def test_zero_is_a_number_of_tritonserver_alone() -> None:
    assert flags.TRITONSERVER.checked(["http-thread-count=0"], "2.68.0") == [("http-thread-count", "0")]
    with pytest.raises(UsageError, match="above 0"):
        frontend.MAIN.checked(["default-max-tokens=0"], "2.68.0")


@pytest.mark.parametrize("program", BOTH, ids=["tritonserver", "frontend"])
def test_a_later_version_is_named(program: Program) -> None:
    with pytest.raises(UsageError, match=r"2\.(59|70)\.0 brought it"):
        program.checked(["http-max-input-size=1"], "2.51.0")
    assert program.checked(["http-max-input-size=1"], "2.71.0") == [("http-max-input-size", "1")]


@pytest.mark.parametrize(
    ("program", "text"),
    [(flags.TRITONSERVER, "allow-client-shm=true"), (frontend.MAIN, "load-model=x")],
    ids=["tritonserver", "frontend"],
)
def test_what_is_never_to_be_set_asks_for_no_later_runtime(program: Program, text: str) -> None:
    with pytest.raises(UsageError, match="not to be set") as e:
        program.checked([text], "2.64.0")
    assert "later" not in str(e.value.fix)


def test_twice_is_refused_where_once_is_all() -> None:
    for program, name in ((flags.TRITONSERVER, "http-thread-count"), (frontend.MAIN, "default-max-tokens")):
        with pytest.raises(UsageError, match="given twice"):
            program.checked([f"{name}=1", f"--{name}=1"], "2.68.0")
