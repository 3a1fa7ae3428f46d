"""GPUs of a node: what a checkpoint says of them, and which sizes are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import random_models
from hypothesis import given
from hypothesis import strategies as st

from enginix import manifest
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import MOST_GPUS, CheckpointMapping, check_node_sizes, default_gpus_per_node
from enginix.checkpoint.verify import verify_checkpoint
from enginix.cli import main
from enginix.errors import EXIT_USAGE, CheckpointError, UsageError
from enginix.serve import hosts


@pytest.fixture
def model(tmp_path: Path) -> Path:
    wide = {"num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 128}
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM", **wide))
    return tmp_path / "model"


def raw(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def test_only_the_number_differs(model: Path, tmp_path: Path) -> None:
    words = ["convert", str(model), "--tensor-parallel", "8", "-o"]
    assert main([*words, str(tmp_path / "eight")]) == 0
    assert main([*words, str(tmp_path / "said"), "--gpus-per-node", "8"]) == 0
    assert main([*words, str(tmp_path / "four"), "--gpus-per-node", "4"]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "eight").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "said").iterdir()}
    four = {path.name: path.read_bytes() for path in (tmp_path / "four").iterdir()}
    assert {name for name in files if files[name] != four[name]} == {"config.json", "enginix.json"}
    theirs, ours = raw(tmp_path / "eight"), raw(tmp_path / "four")
    assert (theirs["mapping"].pop("gpus_per_node"), ours["mapping"].pop("gpus_per_node")) == (8, 4)
    assert theirs == ours
    assert manifest.read_manifest(tmp_path / "four", "checkpoint").options["gpusPerNode"] == 4
    assert CheckpointConfig.read(tmp_path / "four").mapping == CheckpointMapping(8, gpus_per_node=4)
    report = verify_checkpoint(tmp_path / "four")
    assert (report.findings, report.notes) == ([], [])


@pytest.mark.parametrize(
    ("sizes", "each", "expected"),
    [
        # More than one node, the last not full.
        ((8,), "3", "--gpus-per-node 8 for one node, 1, 2, 4 for several; or 6 or 9 ranks"),
        ((4, 3), "8", "--gpus-per-node 12 for one node, 1, 2, 3, 4, 6 for several; or 8 or 16 ranks"),
        ((1,), "0", "is not a number above 0"),
        ((1,), "-4", "is not a number above 0"),
        ((1,), str(10**12), "is not from 1 to 999"),
    ],
)
def test_other_sizes_are_refused(
    sizes: tuple[int, ...], each: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = {"num_hidden_layers": 3, "num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 128}
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM", **deep))
    words = ["convert", str(tmp_path / "model"), "-o", str(tmp_path / "out"), f"--gpus-per-node={each}"]
    for name, size in zip(("tensor", "pipeline"), sizes, strict=False):
        words += [f"--{name}-parallel", str(size)]
    assert main(words) == EXIT_USAGE
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@given(st.integers(1, 64), st.integers(1, 8), st.integers(-2, 80))
def test_what_is_accepted_gives_every_rank_a_gpu_of_its_own(tp: int, pp: int, each: int) -> None:
    mapping = CheckpointMapping(tp, pp, gpus_per_node=each)
    try:
        check_node_sizes(mapping)
    except UsageError as e:
        assert each < 1 or mapping.world_size % each
        assert e.fix
        return
    # As hosts.check_hosts wants them: one machine, or full ones; a rank's GPU is its number modulo each.
    nodes = [list(mapping.ranks())[i : i + each] for i in range(0, mapping.world_size, each)]
    assert len(nodes) == 1 or all(len(node) == each for node in nodes)
    assert all(len({rank % each for rank in node}) == len(node) for node in nodes)


def test_a_node_may_have_as_many_as_a_list_of_hosts_can_say() -> None:
    assert hosts.parse_hosts(f"a:{MOST_GPUS}")[0].slots == MOST_GPUS
    with pytest.raises(UsageError):
        hosts.parse_hosts(f"a:{MOST_GPUS + 1}")


@pytest.mark.parametrize("value", [0, -1, 4.0, "4", True, [4], 2**31])
def test_a_checkpoint_that_says_no_number_is_refused(value: Any, model: Path, tmp_path: Path) -> None:
    convert_model(model, tmp_path / "out", ConvertOptions())
    changed = raw(tmp_path / "out")
    changed["mapping"]["gpus_per_node"] = value
    (tmp_path / "out/config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="gpus_per_node"):
        verify_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(("value", "notes"), [(None, 0), (2, 0), (3, 1)])
def test_verification_tells_what_no_nodes_serve(
    value: int | None, notes: int, model: Path, tmp_path: Path
) -> None:
    convert_model(model, tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(4)))
    changed = raw(tmp_path / "out")
    if value is None:
        del changed["mapping"]["gpus_per_node"]
        assert CheckpointConfig.read(tmp_path / "out").mapping.gpus_per_node == default_gpus_per_node()
    else:
        changed["mapping"]["gpus_per_node"] = value
    (tmp_path / "out/config.json").write_text(json.dumps(changed))
    report = verify_checkpoint(tmp_path / "out")
    assert report.findings == [] and len(report.notes) == notes
    assert all("4 ranks do not fill nodes of gpus_per_node 3 GPUs" in note for note in report.notes)
