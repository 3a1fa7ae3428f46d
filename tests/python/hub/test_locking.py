"""enginix lock: no weight moves, the listing is doubted, drift is shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_support import CONFIG, REPO, content

from enginix.cli import main
from enginix.errors import HubError, LockError
from enginix.hub import lock as locks
from enginix.hub.lock import Selection
from enginix.hub.locking import make_lock
from enginix.kinds.planning.lock_plan import plan_from_lock
from enginix.kinds.planning.plan_record import PlanRequest
from enginix.machine.gpu_table import TargetGpu
from hub import Hub

Start = Callable[..., Hub]


def test_a_lock_pins_what_is_there_without_a_byte_of_weights(
    start: Start, model: Path, tmp_path: Path
) -> None:
    hub = start(model)
    out = tmp_path / "tiny.lock.json"
    assert main(["lock", REPO, "-o", str(out)]) == 0
    lock = locks.read_lock(out)
    assert {f.path for f in lock.files} == {
        "config.json",
        "empty.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "sub/notes.txt",
        "tokenizer.json",
    }
    for f in lock.files:
        data = (model / f.path).read_bytes()
        assert (f.size, f.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert lock.license == "apache-2.0" and lock.gated is False
    assert not any("/blobs/" in r["path"] or ".safetensors" in r["path"] for r in hub.requests)


def test_the_model_facts_are_those_of_the_configuration(start: Start, model: Path) -> None:
    (model / "hf_quant_config.json").write_text(
        json.dumps(
            {
                "producer": {"name": "modelopt", "version": "0.37"},
                "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"},
            }
        )
    )
    start(model)
    facts = make_lock(REPO, Selection()).lock.model
    assert facts == {
        "architecture": "Qwen3ForCausalLM",
        "modelType": "qwen3",
        "layers": CONFIG["num_hidden_layers"],
        "heads": CONFIG["num_attention_heads"],
        "kvHeads": CONFIG["num_key_value_heads"],
        "headSize": CONFIG["head_dim"],
        "hiddenSize": CONFIG["hidden_size"],
        "intermediateSize": CONFIG["intermediate_size"],
        "vocabulary": CONFIG["vocab_size"],
        "context": CONFIG["max_position_embeddings"],
        "attentionWindow": [],
        "dtype": "bfloat16",
        "tiedEmbeddings": True,
        "quantization": "NVFP4",
        "kvCacheQuantization": "FP8",
        "quantizer": "modelopt 0.37",
    }


def test_pages_of_a_listing_are_followed(start: Start, model: Path) -> None:
    for n in range(57):
        (model / "sub" / f"{n:03}.json").write_text(f'{{"n": {n}}}')
    hub = start(model, page_size=10)
    lock = make_lock(REPO, Selection()).lock
    assert sum(f.path.startswith("sub/0") for f in lock.files) == 57
    assert sum("/tree/" in r["path"] for r in hub.requests) > 5


def test_a_wrong_oid_in_the_listing_is_noticed_without_a_download(start: Start, model: Path) -> None:
    start(model, "wrong-oid,path=*00001*")
    with pytest.raises(HubError, match="listing contradicts itself") as e:
        make_lock(REPO, Selection())
    assert "model-00001-of-00002.safetensors" in str(e.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("../../etc/x", "'..' segment"),
        ("/etc/passwd.json", "is absolute"),
        ("a\\b.json", "backslash"),
        ("a\x1b[31m.json", "control or invisible"),
        (".git/hooks/post-checkout", ".git segment"),
    ],
)
def test_a_hostile_path_condemns_the_listing(start: Start, model: Path, path: str, says: str) -> None:
    start(model, f"extra-path,text={path}")
    with pytest.raises(LockError) as e:
        make_lock(REPO, Selection())
    assert says in str(e.value) and "\x1b" not in str(e.value)


def test_names_equal_but_for_case_are_refused(start: Start, model: Path) -> None:
    start(model, "twin,path=config.json")
    with pytest.raises(LockError, match="cannot both exist"):
        make_lock(REPO, Selection(include=("*.json", "*.JSON")))


@pytest.mark.parametrize("body", ["", "{}", "[1]", '[{"type":"file"}]', "[" * 100_000, "<html>log in</html>"])
def test_a_listing_that_is_none_is_refused(start: Start, model: Path, body: str) -> None:
    start(model, "garbage", "status,on=nothing").faults[0].text = body
    with pytest.raises(HubError, match="does not answer as a hub"):
        make_lock(REPO, Selection())


def test_pickles_are_refused_by_name_and_when_there_is_nothing_else(start: Start, model: Path) -> None:
    start(model)
    with pytest.raises(LockError, match=r"training_args\.bin is in a pickle format"):
        make_lock(REPO, Selection(include=("*.bin",)))
    for shard in model.glob("*.safetensors"):
        shard.rename(shard.with_suffix(".pt"))
    with pytest.raises(LockError, match=r"no weights in safetensors; .* is a pickle"):
        make_lock(REPO, Selection())


def test_remote_code_is_pinned_only_when_asked_for(start: Start, model: Path) -> None:
    (model / "modeling_tiny.py").write_text("raise SystemExit\n")
    (model / "config.json").write_text(
        json.dumps({**CONFIG, "auto_map": {"AutoModel": "modeling_tiny.Tiny"}})
    )
    start(model)
    without = make_lock(REPO, Selection())
    assert not any(f.path.endswith(".py") for f in without.lock.files)
    assert any("--remote-code" in note for note in without.notes)
    pinned = {f.path: f.sha256 for f in make_lock(REPO, Selection(remote_code=True)).lock.files}
    assert pinned["modeling_tiny.py"] == hashlib.sha256(b"raise SystemExit\n").hexdigest()


def test_include_and_exclude(start: Start, model: Path) -> None:
    start(model)
    lock = make_lock(REPO, Selection(include=("*.json", "*.safetensors"), exclude=("*-00002-of*",))).lock
    assert [f.path for f in lock.files] == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.json",
    ]


def test_drift_is_shown_and_exits_1_and_update_follows_it(
    start: Start, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(model)
    out = tmp_path / "x.json"
    assert main(["lock", REPO, "--exclude", "sub/*", "-o", str(out)]) == 0
    assert main(["lock", "--check", str(out)]) == 0
    before = out.read_text()
    (model / "model-00002-of-00002.safetensors").write_bytes(content(9, 2_000_000))
    (model / "new.json").write_text("{}")
    (model / "empty.txt").unlink()
    (model / "sub" / "more.txt").write_text("excluded, so no drift\n")
    (model / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 4096}))
    capsys.readouterr()
    assert main(["lock", "--check", str(out)]) == 1
    text = capsys.readouterr().out
    for line in (
        "upstream moved",
        "revision: ",
        "model.context: 2048 → 4096",
        "~ model-00002-of-00002.safetensors  2.9 MiB → 1.9 MiB  sha256 ",
        "+ new.json",
        "- empty.txt",
    ):
        assert line in text
    assert "more.txt" not in text and out.read_text() == before
    assert main(["lock", "--update", str(out)]) == 0
    assert "1.9 MiB of 4.8 MiB to fetch" in capsys.readouterr().out
    assert main(["lock", "--check", str(out)]) == 0


def test_a_model_type_of_another_class_is_noted_and_an_obstacle(
    start: Start, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model_type": "mistral", "transformers_weights": "other.safetensors"}
    (model / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    start(model)
    out = tmp_path / "x.json"
    assert main(["lock", REPO, "-o", str(out)]) == 0
    noted = capsys.readouterr().err
    assert "transformers loads a model by its model_type, as MistralForCausalLM" in noted
    assert "transformers_weights is 'other.safetensors'" in noted
    facts = {**locks.read_lock(out).model, **SIZES}
    gpu, sizes = TargetGpu("g", 90, 1 << 36), {"model.safetensors": 10**6}
    for kind, stops in (("tensorrt", True), ("reference", True), ("llmapi", False)):
        plan = plan_from_lock(facts, sizes, gpu, PlanRequest(kind=kind), "x")
        said = plan.obstacles if stops else plan.notes
        assert any("model_type is 'mistral'" in text for text in said), kind


SIZES = {
    "layers": 2, "heads": 4, "kvHeads": 2, "headSize": 16, "hiddenSize": 64, "intermediateSize": 96,
    "vocabulary": 128, "context": 64, "dtype": "bfloat16",
}  # fmt: skip


def test_a_window_that_nobody_reads_is_not_recorded(start: Start, model: Path, tmp_path: Path) -> None:
    """Older locks hold it, and stay as good as they were."""
    windowed = {**CONFIG, "sliding_window": 131072, "use_sliding_window": False}
    (model / "config.json").write_text(json.dumps(windowed))
    start(model)
    out = tmp_path / "x.json"
    assert main(["lock", REPO, "-o", str(out)]) == 0
    assert "slidingWindow" not in locks.read_lock(out).model
    older = json.loads(out.read_text())
    older["model"]["slidingWindow"] = 131072
    out.write_text(json.dumps(older))
    del older["model"]["attentionWindow"]  # which older locks lack
    out.write_text(json.dumps(older))
    assert main(["lock", "--check", str(out)]) == 0
    older["model"]["attentionWindow"] = [131072]
    out.write_text(json.dumps(older))
    assert main(["lock", "--check", str(out)]) == 1


def test_a_branch_and_a_revision_that_is_not_there(
    start: Start, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hub import Repository

    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(content(5, 1000))
    start(Repository({"main": model, "v2": other}))
    assert [f.path for f in make_lock(REPO, Selection(revision="v2")).lock.files] == ["model.safetensors"]
    assert main(["lock", REPO, "--revision", "v3", "-o", str(tmp_path / "x")]) == 4
    assert "no such revision" in capsys.readouterr().err and not (tmp_path / "x").exists()
    assert main(["lock", "acme/none", "-o", str(tmp_path / "x")]) == 4
    assert "no such repository, or it is private" in capsys.readouterr().err


def test_a_lock_that_is_there_moves_by_update_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, second = tmp_path / "out.json", tmp_path / "second.json"
    with Hub({REPO: model, "acme/second": model}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert main(["lock", REPO, "-o", str(out)]) == main(["lock", "acme/second", "-o", str(second)]) == 0
        before = out.read_text()
        for words in (["acme/second"], ["--dataset", REPO], ["--update", str(second)]):
            assert main(["lock", *words, "-o", str(out)]) == 2 and out.read_text() == before
            assert f"pins the model {REPO}" in capsys.readouterr().err
        assert main(["lock", REPO, "-o", str(out)]) == 0
        (model / "tokenizer.json").write_bytes(b"{ }")
        assert main(["lock", REPO, "-o", str(out)]) == 2 and out.read_text() == before
        assert "--update" in capsys.readouterr().err
        assert main(["lock", "--update", str(out)]) == 0 and out.read_text() != before


def test_an_outage_is_waited_out_and_a_long_one_is_named(
    start: Start, model: Path, waits: list[float]
) -> None:
    start(model, "status,on=info,code=503,times=2", "status,on=tree,code=429,seconds=7,times=1")
    assert make_lock(REPO, Selection()).lock.files
    assert 8.0 in waits  # Retry-After and a second
    start(model, "status,on=info,code=500")
    with pytest.raises(HubError, match="answered 500"):
        make_lock(REPO, Selection())


def test_usage(start: Start, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(model)
    assert main(["lock"]) == 2
    assert main(["lock", REPO]) == 2
    assert main(["lock", REPO, "--check", "x"]) == 2
    assert main(["lock", "a/b/c", "-o", str(tmp_path / "x")]) == 3
    assert main(["lock", "--check", str(tmp_path / "none")]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_offline_mode_is_named(
    start: Start,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    start(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["lock", REPO, "-o", str(tmp_path / "x")]) == 4
    assert "unset HF_HUB_OFFLINE" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert main(["lock", REPO, "--revision", "", "-o", str(tmp_path / "x")]) == 3
