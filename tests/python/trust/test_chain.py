"""`enginix verify`: an artefact and what it was made from; `enginix sign`, and who signed it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from enginix import digests
from enginix.cli import main
from enginix.errors import ManifestError
from enginix.manifest import read_manifest
from enginix.serve.preflight import check_repository
from manifests import age_manifest, edit_manifest

from .conftest import MODEL, Stages
from .tampering import SERVER

Told = pytest.CaptureFixture[str]


def verify(*words: object) -> int:
    return main(["verify", *map(str, words)])


def reseal(directory: Path) -> None:
    """Give an artefact a manifest of the files that it has now, as an attacker would."""
    read_manifest(directory).write(directory)


def test_a_repository_its_engine_and_its_checkpoint(stages: Stages, capsys: Told) -> None:
    assert verify(stages.repository) == 0
    told = capsys.readouterr().out
    for artefact in ("triton-repository", "engine", "checkpoint"):
        assert f"{artefact} tiny-qwen3 " in told
    assert verify(stages.repository, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["artefacts"]
    assert [row["artefact"] for row in rows] == ["triton-repository", "engine", "checkpoint"]
    assert all(row["files"] > 0 for row in rows)


def test_inputs_that_are_given(stages: Stages, tmp_path: Path, capsys: Told) -> None:
    assert verify(stages.engine, "--from", stages.checkpoint, "--from", MODEL) == 0
    other = shutil.copytree(MODEL, tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    assert verify(stages.engine, "--from", other) == 3
    assert "the engine was made from a model with digest" in capsys.readouterr().err
    assert verify(stages.checkpoint, "--from", stages.engine) == 2
    assert "no input of checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("engine/tokenizer/tokenizer.json", "tokenizer/tokenizer.json changed"),
        ("engine/tokenizer/extra.jinja", "tokenizer/extra.jinja was added"),
        ("repository/ensemble/config.pbtxt", "ensemble/config.pbtxt changed"),
        ("engine/checkpoint/enginix.json", "checkpoint/enginix.json changed"),
    ],
)
def test_what_changed_is_named(stages: Stages, path: str, told: str, capsys: Told) -> None:
    with (stages.root / path).open("a") as f:
        f.write(" ")
    assert verify(stages.repository) == 3
    assert told in capsys.readouterr().err


def test_a_missing_file_is_named(stages: Stages, capsys: Told) -> None:
    (stages.engine / "tokenizer/chat_template.jinja").unlink()
    assert verify(stages.engine) == 3
    assert "tokenizer/chat_template.jinja is missing" in capsys.readouterr().err


def test_an_engine_exchanged_behind_a_repository(stages: Stages, capsys: Told) -> None:
    """A whole engine, but another one than the repository was made from."""
    edit_manifest(stages.engine, lambda m: m.update(name="other"))
    assert verify(stages.engine) == 0
    assert verify(stages.repository) == 3
    assert "was made from another engine" in capsys.readouterr().err


def test_a_manifest_that_is_made_older_does_not_hide_a_change(stages: Stages, capsys: Told) -> None:
    age_manifest(stages.engine)
    assert verify(stages.repository) == 3
    assert "was made from another engine" in capsys.readouterr().err


def flip_weights(engine: Path) -> None:
    path = engine / "checkpoint/rank0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def change_template(engine: Path) -> None:
    (engine / "tokenizer/chat_template.jinja").write_text("EVIL")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (flip_weights, "checkpoint/rank0.safetensors changed"),
        (change_template, "tokenizer/chat_template.jinja is not the model's"),
    ],
)
def test_an_engine_whose_manifest_contradicts_its_inputs(
    stages: Stages, tmp_path: Path, change: Callable[[Path], None], told: str, capsys: Told
) -> None:
    """Sealed again, but the checkpoint's manifest in it, and the model that it names, are as they were."""
    change(stages.engine)
    reseal(stages.engine)
    for words in (["verify"], ["check"], ["triton-repo", "-o", str(tmp_path / "r")]):
        assert main([words[0], str(stages.engine), *words[1:]]) == 3
        assert told in capsys.readouterr().err


def test_an_engine_that_names_no_end_tokens(stages: Stages, capsys: Told) -> None:
    edit_manifest(stages.engine, lambda m: m["model"].update(endTokens=None))
    words = ["gate", str(stages.engine), "--reference", str(MODEL), "--gates", '{"files": {}}']
    assert main(words) == 1
    assert "end tokens of the manifest: []" in capsys.readouterr().err


def serve_refusal(repository: Path) -> str:
    with pytest.raises(ManifestError) as refused:
        check_repository(repository, SERVER)
    return str(refused.value)


def test_an_engine_whose_manifest_is_gone(stages: Stages, capsys: Told) -> None:
    (stages.engine / "enginix.json").unlink()
    (stages.engine / "tokenizer/chat_template.jinja").write_text("EVIL")
    assert verify(stages.repository) == 3
    assert "its engine's manifest is missing" in capsys.readouterr().err
    assert "its engine's manifest is missing" in serve_refusal(stages.repository)
    for words in (["verify"], ["check"], ["gate", "--reference", MODEL], ["triton-repo", "-o", "r"]):
        assert main([words[0], str(stages.engine), *map(str, words[1:])]) == 3


@pytest.mark.parametrize("place", ["elsewhere", "engine/../elsewhere"])
def test_a_model_that_reads_outside_of_the_engine(stages: Stages, place: str, capsys: Told) -> None:
    """Whole by its manifest, and signed: but what it reads could change."""
    shutil.copytree(stages.engine / "tokenizer", stages.root / "elsewhere")
    config = stages.repository / "ensemble/config.pbtxt"
    text = config.read_text()
    changed = text.replace(str(stages.engine / "tokenizer"), str(stages.root / place))
    assert changed != text
    config.write_text(changed)
    reseal(stages.repository)
    assert verify(stages.repository) == 3
    assert "neither in the repository nor in its engine" in capsys.readouterr().err
    assert "neither in the repository nor in its engine" in serve_refusal(stages.repository)


def test_a_store_path_costs_nothing_unless_it_is_asked_for(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    monkeypatch.setattr(digests, "_find_store", lambda: str(stages.root.parent))
    stored = stages.root.with_name("qq8x6bjr3k2wvilqc1l7chivcyg6wj5h-stages")
    stages.root.rename(stored)
    (stored / "engine/tokenizer/tokenizer.json").write_text("{}")
    stored.chmod(0o555)
    monkeypatch.setattr(digests, "_hash_descriptor", lambda _: pytest.fail("a store path was read"))
    assert verify(stored / "engine") == 0
    assert "in a store of Nix" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(digests, "_find_store", lambda: str(stored.parent))
    assert verify(stored / "engine", "--full") == 3
    assert "tokenizer.json changed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SSH keys, and a file of signers that allows the first."""
    directory = tmp_path_factory.mktemp("keys")
    for name in ("alice", "mallory"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
        subprocess.run(words, check=True)
    public = (directory / "alice.pub").read_text().split()
    (directory / "signers").write_text(f"alice@example.org {public[0]} {public[1]}\n")
    return directory


def sign(directory: Path, key: Path, *words: object) -> int:
    return main(["sign", str(directory), "--key", str(key), *map(str, words)])


def test_an_engine_that_an_allowed_signer_signed(stages: Stages, keys: Path, capsys: Told) -> None:
    assert verify(stages.engine, "--signers", keys / "signers") == 3
    assert "not signed" in capsys.readouterr().err
    assert sign(stages.engine, keys / "alice") == 0
    assert verify(stages.engine, "--signers", keys / "signers") == 0
    assert "signed by alice@example.org" in capsys.readouterr().out
    # As git verifies: by ssh-keygen, without enginix.
    words = ["ssh-keygen", "-Y", "verify", "-f", keys / "signers", "-I", "alice@example.org", "-n", "enginix"]
    with (stages.engine / "enginix.json").open("rb") as content:
        done = subprocess.run([*words, "-s", stages.engine / "enginix.json.sig"], stdin=content, check=False)
    assert done.returncode == 0


def test_a_second_signature_keeps_the_first(stages: Stages, keys: Path, capsys: Told) -> None:
    signature = stages.engine / "enginix.json.sig"
    for name in ("alice", "mallory", "alice"):
        assert sign(stages.engine, keys / name) == 0
        assert verify(stages.engine, "--signers", keys / "signers") == 0
    assert signature.read_text().count("BEGIN") == 2
    assert sign(stages.engine, keys / "mallory", "--force") == 0
    assert signature.read_text().count("BEGIN") == 1
    assert verify(stages.engine, "--signers", keys / "signers") == 3
    # Of another manifest, or none at all: what is there is not thrown away.
    edit_manifest(stages.engine, lambda m: m["results"].update(gates={"logits": "passed"}))
    for content in (signature.read_text(), "mine\n"):
        signature.write_text(content)
        assert sign(stages.engine, keys / "alice") == 2
        assert signature.read_text() == content and "--force" in capsys.readouterr().err
    assert sign(stages.engine, keys / "alice", "--force") == 0
    assert verify(stages.engine, "--signers", keys / "signers") == 0


@pytest.mark.parametrize("forgery", ["another key", "another manifest", "another namespace", "garbage"])
def test_a_signature_that_does_not_count(stages: Stages, keys: Path, forgery: str, capsys: Told) -> None:
    assert sign(stages.engine, keys / ("mallory" if forgery == "another key" else "alice")) == 0
    signature = stages.engine / "enginix.json.sig"
    if forgery == "another manifest":
        # Whole by its own digest: only the signature tells.
        edit_manifest(stages.engine, lambda m: m["results"].update(gates={"logits": "passed"}))
    elif forgery == "garbage":
        signature.write_text("-----BEGIN SSH SIGNATURE-----\n")
    elif forgery == "another namespace":
        signature.unlink()
        words = ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", str(keys / "alice")]
        subprocess.run([*words, str(stages.engine / "enginix.json")], check=True)
    (stages.engine / "enginix.intoto.json").unlink()
    capsys.readouterr()
    assert verify(stages.engine, "--signers", keys / "signers") == 3
    assert "not one of an allowed signer" in capsys.readouterr().err


def test_what_is_signed_is_checked_first(stages: Stages, keys: Path, capsys: Told) -> None:
    with (stages.engine / "tokenizer/tokenizer.json").open("a") as f:
        f.write(" ")
    assert sign(stages.engine, keys / "alice") == 3
    assert not (stages.engine / "enginix.json.sig").exists()


@pytest.mark.parametrize("name", ["enginix.json.sig", "enginix.intoto.json"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_directory_in_the_place_of_a_signature(
    stages: Stages, keys: Path, name: str, force: list[str], capsys: Told
) -> None:
    (stages.engine / name).mkdir()
    assert sign(stages.engine, keys / "alice", *force) == 2
    assert f"{name}: is a directory" in capsys.readouterr().err
    assert not (stages.engine / "enginix.json.sig").is_file()


def test_a_signature_elsewhere(stages: Stages, keys: Path, tmp_path: Path, capsys: Told) -> None:
    """As for a store path, which does not change; it stays whole."""
    assert sign(stages.engine, keys / "alice", "-o", tmp_path / "signatures") == 0
    assert not (stages.engine / "enginix.json.sig").exists()
    signature = tmp_path / "signatures/enginix.json.sig"
    words = ["--signers", keys / "signers", "--signature", signature]
    assert verify(stages.engine, *words) == 0
    (tmp_path / "signatures/enginix.intoto.json").write_text("{}")
    capsys.readouterr()
    assert verify(stages.engine, *words) == 3
    assert "not the statement of this manifest" in capsys.readouterr().err
    assert verify(stages.engine, "--signature", signature) == 2
    assert verify(stages.engine, "--signers", tmp_path / "none") == 2
    (tmp_path / "empty").write_text("# later\n")
    for nameless in (tmp_path / "empty", keys / "alice.pub"):
        assert verify(stages.engine, "--signers", nameless) == 2


@pytest.mark.parametrize("key", ["missing", "alice.pub of nobody", "signers"])
def test_a_key_that_cannot_sign(stages: Stages, keys: Path, tmp_path: Path, key: str, capsys: Told) -> None:
    path = keys / key
    if key.endswith("nobody"):
        path = tmp_path / "alice.pub"
        shutil.copyfile(keys / "mallory.pub", path)
    assert sign(stages.engine, path) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_statement_is_in_totos(stages: Stages, keys: Path) -> None:
    assert sign(stages.engine, keys / "alice") == 0
    statement = json.loads((stages.engine / "enginix.intoto.json").read_text())
    manifest = json.loads((stages.engine / "enginix.json").read_text())
    in_toto = json_format.ParseDict(statement, statement_pb2.Statement())
    Statement.copy_from_pb(in_toto).validate()
    json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())
    subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    assert subjects.pop("enginix.json")
    assert subjects == {name: entry["sha256"] for name, entry in manifest["files"].items()}
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"checkpoint", "model/model.safetensors"} <= {d["name"] for d in dependencies}
