"""A gateway's description and its keys: what is wrong is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.cli import main
from enginix.errors import UsageError
from enginix.gateway import litellm_config
from enginix.gateway.keys import Keys, read_key
from enginix.gateway.spec import GatewaySpecError, parse_gateway_spec

SERVER = {"kind": "triton", "url": "http://127.0.0.1:8000", "model": "ensemble"}
OTHER = {"kind": "openai", "url": "http://h:1/v1", "model": "x", "keyFile": "s"}
GOOD: dict[str, Any] = {
    "version": 1,
    "name": "gateway",
    "models": {
        "a": [SERVER],
        "b": [SERVER, OTHER],
    },
    "aliases": {"c": "a"},
    "fallbacks": {"a": ["b"]},
    "keyFile": "k",
    "clients": {"alice": {"keyFile": "alice", "models": ["a"], "requestsPerMinute": 3}},
    "limits": {"maxParallelRequests": 5, "defaultMaxTokens": 9},
    "strategy": "latency-based-routing",
}


def changed(path: tuple[Any, ...], value: Any) -> Any:
    found = copy.deepcopy(GOOD)
    inner: Any = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("version",), 2, "version"),
        (("nam",), "x", "nam: no such key"),
        (("models",), {}, "no models are configured"),
        (("models", "a"), [], "models.a"),
        (("models", "a b"), [SERVER], "'a b' is not a valid name"),
        (("models", "a", 0, "kind"), "vllm", "models.a[0].kind"),
        (("models", "a", 0, "url"), "127.0.0.1:8000", "models.a[0].url"),
        (("models", "a", 0, "url"), "http://u:p@h:1", "models.a[0].url"),
        (("models", "a", 0, "url"), "http://h:0", "port must not be 0"),
        (("models", "a", 0, "url"), "http://h:99999", "models.a[0].url"),
        (("models", "a", 0, "url"), 3, "url is not of type str"),
        (("models", "a", 0, "modl"), "x", "modl: no such key"),
        (("aliases", "b"), "a", "is a model already"),
        (("aliases", "c"), "z", "'z' is not a model"),
        (("fallbacks", "a"), ["z"], "'z' is not a model"),
        (("clients", "alice", "models"), ["z"], "clients.alice.models"),
        (("clients", "alice", "requestsPerMinute"), -1, "requestsPerMinute"),
        (("clients", "alice"), {}, "keyFile is missing"),
        (("limits", "defaultMaxTokens"), 0, "limits.defaultMaxTokens"),
        (("limits", "defaultMaxTokens"), True, "defaultMaxTokens is not of type int"),
        (("strategy",), "random", "strategy"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[Any, ...], value: Any, said: str) -> None:
    parse_gateway_spec(GOOD, "x")
    with pytest.raises(GatewaySpecError) as refused:
        parse_gateway_spec(changed(path, value), "x")
    assert said in str(refused.value)


@given(st.data())
def test_anything_anywhere_is_refused_or_taken(data: st.DataObject) -> None:
    paths = [
        ("models",),
        ("models", "a"),
        ("models", "a", 0),
        ("clients",),
        ("clients", "alice"),
        ("limits",),
    ]
    paths += [("aliases",), ("fallbacks",), ("strategy",), ("keyFile",), ("name",), ("models", "a", 0, "url")]
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False)
    values = (
        scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=8), scalars, max_size=2)
    )
    found = changed(data.draw(st.sampled_from(paths)), data.draw(values))
    try:
        litellm_config.render_litellm_config(parse_gateway_spec(found, "x"), litellm_config.name_key_variable)
    except GatewaySpecError as e:
        assert str(e)


def test_litellm_gets_names_of_keys_and_no_keys() -> None:
    rendered = litellm_config.render_litellm_config(
        parse_gateway_spec(GOOD, "x"), litellm_config.name_key_variable
    )
    rows = rendered["model_list"]
    assert [r["model_name"] for r in rows] == ["a", "b", "b"]
    assert rows[2]["litellm_params"]["api_key"] == f"os.environ/{litellm_config.name_key_variable('s')}"
    # Which server is next is the balancer's; LiteLLM knows each by a name of its own.
    assert rendered["router_settings"]["num_retries"] == 0
    assert [r["model_info"]["id"] for r in rows] == ["a", "b#0", "b#1"]


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("k", "operator" * 4), ("alice", "alice" * 4), ("short", "x"), ("two", "a b" * 10)):
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    with pytest.raises(UsageError, match="credential"):
        read_key("k")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    keys = Keys(parse_gateway_spec(GOOD, "x"))
    assert [getattr(keys.caller(k), "name", None) for k in ("operator" * 4, "alice" * 4, "", None, "x")] == [
        "operator",
        "alice",
        None,
        None,
        None,
    ]
    for name in ("short", "two", "none"):
        with pytest.raises(UsageError, match=name):
            read_key(name)
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(UsageError, match="everybody"):
        read_key("k")
    (tmp_path / "k").chmod(0o600)
    (tmp_path / "alice").write_text("operator" * 4)
    with pytest.raises(UsageError, match="same key"):
        Keys(parse_gateway_spec(GOOD, "x"))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.json"
    keyless = {"version": 1, "name": "gateway", "models": {"a": [SERVER]}}
    file.write_text(json.dumps(keyless))
    assert main(["gateway", str(file), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["litellm"]["model_list"][0]["model_name"] == "a"
    assert main(["gateway", str(file), "--host", "0.0.0.0"]) == 2
    assert "there is no key" in capsys.readouterr().err
    assert main(["gateway", str(file), "--python", "/bin/true"]) == 5
    assert "is no Python that runs" in capsys.readouterr().err
    file.write_text("{")
    assert main(["gateway", str(file)]) == 3
    assert main(["gateway", str(tmp_path / "none")]) == 3
