"""What goes wrong midway: killed, no space, damaged or changing input. The output is whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import random_models

from enginix.checkpoint import write
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.verify import verify_checkpoint
from enginix.cli import main
from enginix.errors import EXIT_INPUT, EXIT_MACHINE, MachineError, ModelError
from enginix.model.safetensors import read_header

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "head_dim": 64,
    "vocab_size": 20000,
}


def test_killed_midway_leaves_no_output(tmp_path: Path) -> None:
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM", **WIDE))
    words = ["convert", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--dtype", "float16"]
    # It stands still after half of its tasks, so that it is killed midway however busy the machine is.
    midway = (
        "import sys, time\nfrom enginix.checkpoint import write\nfrom enginix.cli import main\n"
        "tasks = write._iterate_tasks\n"
        "def half(*given):\n"
        "    known = list(tasks(*given))\n"
        "    yield from known[: len(known) // 2]\n"
        "    print('midway', flush=True)\n"
        "    time.sleep(1000)\n"
        "write._iterate_tasks = half\nmain(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", midway, *words], cwd=Path(write.__file__).parents[2], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"midway\n"
    partial = [p for p in tmp_path.glob(".out.*.partial") if list(p.glob("*.safetensors"))]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert partial and not (tmp_path / "out").exists()
    convert_model(
        tmp_path / "model", tmp_path / "out", ConvertOptions()
    )  # leftovers do not disturb the next run


def _is_root() -> bool:
    return os.geteuid() == 0


@pytest.mark.skipif(not _is_root(), reason="mounting a small tmpfs needs root")
@pytest.mark.parametrize("lying", [False, True], ids=["seen before", "met while writing"])
def test_a_full_disk(lying: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM", **WIDE))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        if lying:
            monkeypatch.setattr(write.shutil, "disk_usage", lambda _: type("Free", (), {"free": 1 << 50}))
        with pytest.raises(MachineError) as e:
            convert_model(tmp_path / "model", disk / "out", ConvertOptions())
        assert ("free" in e.value.what) != lying and e.value.fix
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def damage_truncate(model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-5])


def damage_swap(model: Path) -> None:
    one, two, *_ = sorted(model.glob("*.safetensors"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def damage_shard_lost(model: Path) -> None:
    sorted(model.glob("*.safetensors"))[0].unlink()


def damage_index_short(model: Path) -> None:
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].popitem()
    path.write_text(json.dumps(index))


def damage_config_of_another_size(model: Path) -> None:
    path = model / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 24', '"hidden_size": 48'))


def damage_config_garbage(model: Path) -> None:
    (model / "config.json").write_bytes(b"\x00\xff garbage")


def damage_more_layers(model: Path) -> None:
    path = model / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


def damage_fewer_layers(model: Path) -> None:
    path = model / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))


def damage_index_of_another_shard(model: Path) -> None:
    """A tensor is said to be in a shard that does not hold it."""
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(set(index["weight_map"].values()))
    first = next(n for n, shard in index["weight_map"].items() if shard == names[0])
    index["weight_map"][first] = names[1]
    path.write_text(json.dumps(index))


def damage_header_of_gigabytes(model: Path) -> None:
    """The length of the header is a lie; the file is sparse, and as long as it says."""
    path = sorted(model.glob("*.safetensors"))[0]
    with path.open("r+b") as f:
        f.write((4 << 30).to_bytes(8, "little"))
        f.truncate(5 << 30)


def damage_shard_is_a_pipe(model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[0]
    path.unlink()
    os.mkfifo(path)


def damage_config_is_a_pipe(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")


def damage_shard_is_a_directory(model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[0]
    path.unlink()
    path.mkdir()


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damaged_input(damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    random_models.write(model, random_models.config("LlamaForCausalLM"), shards=3)
    damage(model)
    assert main(["convert", str(model), "-o", str(tmp_path / "out"), "--json"]) == EXIT_INPUT
    answer = json.loads(capsys.readouterr().out)
    assert answer["what"] and answer["where"] and answer["fix"]
    assert list(tmp_path.iterdir()) == [model]


def test_input_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    random_models.write(model, random_models.config("LlamaForCausalLM"))
    from enginix.checkpoint import convert as module

    def shrink_first(directory: Path, ranks: Any) -> int:
        with (model / "model.safetensors").open("r+b") as f:
            f.truncate(5000)
        return write.write_ranks(directory, ranks)

    monkeypatch.setattr(module, "write_ranks", shrink_first)
    with pytest.raises(ModelError, match="its header lists data"):
        convert_model(model, tmp_path / "out", ConvertOptions())
    assert list(tmp_path.iterdir()) == [model]


def test_values_that_do_not_fit_the_dtype(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tensors = random_models.write(model, random_models.config("LlamaForCausalLM"))
    tensors["model.norm.weight"][3] = 1e6
    (model / "model.safetensors").write_bytes(random_models.safetensors_bytes(tensors))
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*float16"):
        convert_model(model, tmp_path / "out", ConvertOptions(dtype="float16"))
    assert list(tmp_path.iterdir()) == [model]
    convert_model(model, tmp_path / "out", ConvertOptions(dtype="float32"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_nan_in_a_checkpoint_is_found(dtype: str, tmp_path: Path) -> None:
    """Conversion refuses a model with NaN; another converter's checkpoint, or a damaged one, may hold it."""
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM"))
    convert_model(
        tmp_path / "model", tmp_path / "out", ConvertOptions(dtype=dtype, mapping=CheckpointMapping(2))
    )
    rank = tmp_path / "out/rank0.safetensors"
    tensor = read_header(rank).tensors["transformer.layers.1.mlp.proj.weight"]
    data = bytearray(rank.read_bytes())
    data[tensor.begin : tensor.begin + tensor.itemsize] = b"\xff" * tensor.itemsize
    rank.write_bytes(data)
    (finding,) = verify_checkpoint(tmp_path / "out").findings
    assert str(finding).startswith(
        "rank0.safetensors: transformer.layers.1.mlp.proj.weight: holds NaN or an infinity"
    )


@pytest.mark.parametrize("out", ["/proc/nowhere/out", "/dev/null/out"])
def test_output_that_cannot_be_made(out: str, tmp_path: Path) -> None:
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM"))
    assert main(["convert", str(tmp_path / "model"), "-o", out]) == EXIT_MACHINE


def test_existing_output_is_kept(tmp_path: Path) -> None:
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    assert main(["convert", str(tmp_path / "model"), "-o", str(tmp_path / "out")]) != 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_no_torch_on_the_way(tmp_path: Path) -> None:
    """The conversion path imports no torch, its help not even NumPy."""
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM", dtype="float16"))
    here = Path(write.__file__).parents[2]
    code = (
        "import sys; from enginix.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'numpy'}))"
    )
    words = ["convert", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--dtype", "bfloat16"]
    for args, expected in ((words, "['numpy']"), (["convert", "--help"], "[]")):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], cwd=here, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == expected


def test_machine_errors_have_their_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM"))
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: type("Free", (), {"free": 10}))
    assert main(["convert", str(tmp_path / "model"), "-o", str(tmp_path / "out")]) == EXIT_MACHINE
    assert not (tmp_path / "out").exists()
