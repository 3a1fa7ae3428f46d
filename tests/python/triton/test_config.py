"""config.pbtxt both ways, and errors that name the key."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginix.errors import RepositoryError
from enginix.kinds.tensorrt.tensorrt_models import NvidiaModelOptions
from enginix.tables import load_table
from enginix.triton import config, contract

GOOD = """
name: "m"
backend: "python"
max_batch_size: 4
input { name: "a" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "b" data_type: TYPE_INT32 dims: [ -1 ] }
parameters { key: "k" value { string_value: "v" } }
"""


def refusal(text: str) -> RepositoryError:
    with pytest.raises(RepositoryError) as caught:
        config.parse_pbtxt(text, "m/config.pbtxt")
    return caught.value


KINDS = {
    "reference": contract.load_reference_contract(),
    "tensorrt": contract.build_tensorrt_contract(NvidiaModelOptions().datatypes()),
}
EVERY_MODEL = [(kind, name) for kind, models in KINDS.items() for name in models]


def test_the_models_of_the_reference_kind() -> None:
    assert {name: model.steps for name, model in contract.load_reference_contract().items()} == {
        "tensorrt_llm": (),
        "ensemble": (),
    }


@pytest.mark.parametrize(("kind", "name"), EVERY_MODEL)
def test_every_model_is_rendered_and_read_back(kind: str, name: str) -> None:
    model = KINDS[kind][name]
    message = (
        config.build_ensemble_config(model, max_batch_size=4)
        if model.steps
        else config.build_model_config(
            model, max_batch_size=4, instances=2, parameters={"k": 'quote " and \\ and ü\n'}
        )
    )
    read_back = config.parse_pbtxt(config.render_pbtxt(message), name)
    assert read_back == message
    assert [t.name for t in read_back.input] == [t.name for t in model.inputs]
    assert [s.model_name for s in read_back.ensemble_scheduling.step] == [s.model for s in model.steps]


@pytest.mark.parametrize("name", contract.load_reference_contract())
def test_the_reference_kind_changes_nothing_of_the_contract(name: str) -> None:
    """Name, type and dims of every tensor are NVIDIA's, except the few that are marked as additions."""
    mine, whole = contract.load_reference_contract()[name], contract.load_nvidia_contract()[name]
    extra_inputs = {t.name for t in mine.inputs} - {t.name for t in whole.inputs}
    extra_outputs = {t.name for t in mine.outputs} - {t.name for t in whole.outputs}
    # The text is optional where messages can take its place.
    text = set(load_table("triton_chat")["models"].get(name, {}).get("optional", ()))
    assert text <= {"text_input"}
    same = {replace(t, optional=False) if t.name in text else t for t in mine.inputs}
    assert same - set(whole.inputs) == {t for t in mine.inputs if t.name in extra_inputs}
    assert set(mine.outputs) - set(whole.outputs) == {t for t in mine.outputs if t.name in extra_outputs}
    # A client of NVIDIA's repository need not send anything that it does not know.
    assert all(t.optional for t in mine.inputs if t.name in extra_inputs)
    assert {t.name for t in whole.inputs if not t.optional} <= {t.name for t in mine.inputs}


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "no-chat"])
def test_maps_of_the_ensemble_are_the_contract_s(chat: bool) -> None:
    found = contract.build_tensorrt_contract(NvidiaModelOptions().datatypes(), chat=chat)["ensemble"]
    for mine, whole in zip(found.steps, contract.load_nvidia_contract()["ensemble"].steps, strict=True):
        assert mine.model == whole.model
        assert {k: v for k, v in mine.inputs.items() if k in whole.inputs} == whole.inputs
        messages = {"MESSAGES", "CHAT_TEMPLATE_ARGS"} if chat and mine.model == "preprocessing" else set()
        assert set(mine.inputs) - set(whole.inputs) == messages
        assert mine.outputs == whole.outputs


def test_a_placeholder_is_named_with_its_key_and_line() -> None:
    error = refusal(GOOD.replace("max_batch_size: 4", "max_batch_size: ${triton_max_batch_size}"))
    assert "line 4: max_batch_size: placeholder ${triton_max_batch_size} was never replaced" in str(error)


def test_a_placeholder_in_a_string_is_refused_too() -> None:
    # Triton tolerates it where the backend has a default, and serves something else than was meant.
    assert "string_value: placeholder ${engine_dir}" in str(refusal(GOOD.replace('"v"', '"${engine_dir}"')))


def test_a_placeholder_in_a_comment_is_none() -> None:
    config.parse_pbtxt(GOOD + "# was ${x}\n", "m")


def test_an_unknown_key_is_named_with_the_nearest_one() -> None:
    error = refusal(GOOD.replace("max_batch_size", "max_batchsize"))
    assert "max_batchsize: unknown key of ModelConfig" in error.what
    assert error.fix == "did you mean max_batch_size?"


def test_an_unknown_key_of_an_inner_message() -> None:
    error = refusal(GOOD.replace('name: "a" data_type', 'name: "a" dtype'))
    assert "dtype: unknown key of ModelInput" in error.what


@pytest.mark.parametrize("value", ["int64_value: 3", "bool_value: true"])
def test_parameters_are_strings(value: str) -> None:
    error = refusal(GOOD.replace('string_value: "v"', value))
    assert "parameters are string_value only" in error.what


def test_a_wrong_value_names_its_line() -> None:
    assert "line 4" in refusal(GOOD.replace("max_batch_size: 4", 'max_batch_size: "four"')).what


@given(st.text(max_size=200))
def test_any_text_is_a_message_or_a_clear_error(text: str) -> None:
    try:
        config.parse_pbtxt(text, "m")
    except RepositoryError as e:
        assert e.what


@given(st.integers(0, len(GOOD)), st.integers(0, 20))
def test_damaged_configurations_are_a_message_or_a_clear_error(at: int, length: int) -> None:
    try:
        config.parse_pbtxt(GOOD[:at] + GOOD[at + length :], "m")
    except RepositoryError as e:
        assert e.what


def test_deep_nesting_is_refused() -> None:
    refusal("input {" * 5000)
