"""Gates of quality on the trained tiny model: healthy number formats pass, damage is rejected."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.errors import CheckpointError, GateError, ManifestError, UsageError
from enginix.evaluation.judgement import quality, run, suite
from enginix.evaluation.judgement.gate_names import list_gates
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import exact_answers, hf
from enginix.evaluation.reference_answers import material as materials
from enginix.evaluation.reference_answers.answers import ReferenceAnswers
from enginix.evaluation.reference_answers.material import Material
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject
from enginix.manifest import Manifest
from enginix.reference.executor import Executor
from enginix.tables import load_table
from manifests import age_manifest
from tiny_model import Tensors, ask_little, damaged, make_loud, quantize

ENDS = frozenset({2})
NOT_ASKED = (suite.LOGITS, "context", *suite.COMPARED)  # of tiny-qwen3, which finds no planted facts
FORMATS = ("FP8", "FP8_KV", "FP8_PC_PT", "INT8_SQ", "INT4_AWQ", "W4A8_AWQ", "NVFP4")


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> hf.TransformersTokenizer:
    return hf.TransformersTokenizer(model)


@pytest.fixture(scope="session")
def material(tokenizer: hf.TransformersTokenizer) -> Material:
    return materials.load_material(tokenizer, 2048, 2048)


@pytest.fixture(scope="session")
def answers(model: Path, material: Material, tokenizer: hf.TransformersTokenizer) -> ReferenceAnswers:
    torch.set_num_threads(1)
    subject = TransformersSubject(model)
    return kept_answers.ask_reference(subject, material, ENDS, {"name": "tiny-qwen3"}, tokenizer)


@pytest.fixture(scope="session")
def quantized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.set_num_threads(1)
            made[name] = quantize(model, name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


class RememberingSubject(ExecutorSubject):
    """A sound engine, which gives the answers that it gave before to the same questions."""

    def __init__(self, executor: Executor, remembered: dict[Any, list[list[int]]]) -> None:
        super().__init__(executor)
        self.remembered = remembered

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        key = (tuple(map(tuple, prompts)), most, ends, together)
        if key not in self.remembered:
            self.remembered[key] = super().generate(prompts, most, ends, together=together)
        return copy.deepcopy(self.remembered[key])


class Judge:
    """Runs the suite on a checkpoint, or on any subject in its place."""

    def __init__(
        self, tokenizer: hf.TransformersTokenizer, material: Material, answers: ReferenceAnswers
    ) -> None:
        self.tokenizer, self.material, self.answers = tokenizer, material, answers

    def __call__(
        self,
        checkpoint: Path,
        *gates: str,
        wrap: Callable[[Any], Any] = lambda subject: subject,
        tokenizer: Any = None,
        **changes: Any,
    ) -> dict[str, GateOutcome]:
        def load() -> suite.JudgedEngine:
            executor = Executor.load(checkpoint, dtype="float32")
            return suite.JudgedEngine(
                wrap(ExecutorSubject(executor)),
                tokenizer or self.tokenizer,
                executor.config,
                without_rounding=executor.without_rounding,
            )

        from enginix.reference import config

        wanted = suite.resolve_checkpoint_bounds(
            config.read_executor_config(checkpoint),
            {g: {} for g in gates or suite.GATES if g not in NOT_ASKED},
        )
        for gate, bounds in changes.items():
            wanted[gate] |= bounds
        outcomes, _ = suite.run_gates(load, self.tokenizer, self.material, self.answers, wanted)
        return {outcome.gate: outcome for outcome in outcomes}


@pytest.fixture(scope="session")
def judge(tokenizer: hf.TransformersTokenizer, material: Material, answers: ReferenceAnswers) -> Judge:
    return Judge(tokenizer, material, answers)


@pytest.fixture(scope="session")
def little_judge(model: Path, tokenizer: hf.TransformersTokenizer) -> Judge:
    """Asks a part of the material, for engines that are far from every bound; all of the questions."""
    torch.set_num_threads(1)
    with ask_little(questions=38):
        material = materials.load_material(tokenizer, 2048, 2048)
    subject = TransformersSubject(model)
    answers = kept_answers.ask_reference(subject, material, ENDS, {"name": "tiny-qwen3"}, tokenizer)
    return Judge(tokenizer, material, answers)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_healthy_formats_pass(
    judge: Judge, little_judge: Judge, quantized: Callable[[str], Path], name: str
) -> None:
    asked_little = ("invariance",)  # answers must be equal; of all prompts it takes most of the time
    expected = set(suite.GATES) - set(NOT_ASKED)
    found = judge(quantized(name), *expected.difference(asked_little))
    found |= little_judge(quantized(name), *asked_little)
    assert set(found) == expected
    for outcome in found.values():
        assert outcome.passed, f"{outcome.gate}: {outcome.summary}"
    run.require_gates_passed(tuple(found.values()))
    assert found["agreement"].detail["top1Found"] < 1, "quantization changed nothing"


def test_a_sound_checkpoint_passes_every_gate(little_judge: Judge, checkpoint: Path) -> None:
    for outcome in little_judge(checkpoint).values():
        assert outcome.passed, f"{outcome.gate}: {outcome.summary}"


FC = "transformer.layers.1.mlp.fc"
QKV = "transformer.layers.2.attention.qkv"


def _scales(factor: float, tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("weights_scaling_factor"):
            tensors[name] *= factor


def _shuffle(prefix: str, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if name.startswith(prefix) and tensor.dtype is torch.float8_e4m3fn:
            tensors[name] = tensor.view(torch.uint8).roll(7, 0).view(tensor.dtype)


DAMAGE: dict[str, Callable[[Tensors], object]] = {
    "one matrix's FP8 scale × 8": lambda t: t[f"{QKV}.weights_scaling_factor"].mul_(8),
    "all FP8 scales × 8": lambda t: _scales(8, t),
    "all FP8 scales ÷ 8": lambda t: _scales(1 / 8, t),
    "activation scales ÷ 8": lambda t: [
        t[n].div_(8) for n in t if n.endswith("activation_scaling_factor")
    ],
    "one layer's weights shuffled": lambda t: _shuffle("transformer.layers.1.", t),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_fail(
    judge: Judge, quantized: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    found = judge(damaged(quantized("FP8"), tmp_path / "c", DAMAGE[damage]), "agreement", "perplexity")
    assert not found["agreement"].passed or not found["perplexity"].passed, damage
    with pytest.raises(GateError, match="failed"):
        run.require_gates_passed(tuple(found.values()))


@pytest.mark.slow
def test_kv_scales_of_one_on_large_values_fail(judge: Judge, model: Path, tmp_path: Path) -> None:
    """With scales of their own, large keys do less harm; with 1.0 they saturate."""
    loud, one = make_loud(model, tmp_path / "loud"), tmp_path / "one"
    convert_model(loud, one, ConvertOptions(kv_cache="FP8"))
    executor = Executor.load(one, dtype="float32")
    assert float(executor.layers[0].attention.kv_scale) == 1.0
    found = judge(one, "agreement", "perplexity")
    assert not found["agreement"].passed and not found["perplexity"].passed

    def fit(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("kv_cache_scaling_factor"):
                tensors[name].fill_(256 * 40 / 448)

    # Keys take all of the range, and values little of it: one scale for both is what the format has.
    healthy = judge(damaged(one, tmp_path / "fit", fit), "agreement", "perplexity")
    assert healthy["perplexity"].detail["ratioFound"] < found["perplexity"].detail["ratioFound"]


def swap_tokenizer(model: Path, swapped: Path) -> Path:
    """A tokenizer of the same size, 100 pieces exchanged."""
    shutil.copytree(model, swapped)
    raw = json.loads((swapped / "tokenizer.json").read_text("utf-8"))
    vocabulary = raw["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.get)
    for a, b in zip(words[300:400:2], words[301:401:2], strict=True):
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (swapped / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    return swapped


def test_a_swapped_tokenizer_fails(
    little_judge: Judge, checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    found = little_judge(
        checkpoint, tokenizer=hf.TransformersTokenizer(swap_tokenizer(model, tmp_path / "tokenizer"))
    )
    assert not any(outcome.passed for outcome in found.values())
    assert all("tokenizer is not the model's" in outcome.summary for outcome in found.values())


def spare_a_layer(checkpoint: Path, out: Path) -> Path:
    """One matrix in full precision, and in the list of those that are meant to be."""

    def plain(tensors: Tensors) -> None:
        scale = tensors.pop(f"{FC}.weights_scaling_factor")
        tensors.pop(f"{FC}.activation_scaling_factor")
        tensors[f"{FC}.weight"] = (tensors[f"{FC}.weight"].float() * scale).bfloat16()

    damaged(checkpoint, out, plain)
    with pytest.raises(CheckpointError, match="expected F8_E4M3"):
        Executor.load(out)  # the checkpoint says that it is quantized
    config = json.loads((out / "config.json").read_text())
    config["quantization"]["exclude_modules"] = ["*lm_head", FC]
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.slow
def test_a_silently_unquantized_layer_fails(
    judge: Judge, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    out = spare_a_layer(quantized("FP8"), tmp_path / "c")
    found = judge(out)
    assert not found["coverage"].passed and FC in found["coverage"].summary
    assert found["agreement"].passed, "no other gate can see it"
    assert judge(out, "coverage", coverage={"unquantized": [FC]})["coverage"].passed


class Wrapped:
    """A stand-in for an engine: behaves as another one, but for what a test changes."""

    def __init__(self, subject: ExecutorSubject) -> None:
        self.subject = subject
        self.vocab_size, self.max_length, self.tie = subject.vocab_size, subject.max_length, subject.tie
        self.calls = 0

    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        return self.subject.logits(texts)

    def logits_at(self, text: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        return self.subject.logits_at(text, positions)

    def hidden(self, text: Sequence[int]) -> list[torch.Tensor]:
        return self.subject.hidden(text)

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        self.calls += 1
        return self.subject.generate(prompts, most, ends, together=together)


class Silent(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return [[] for _ in prompts]


class StopsAtOnce(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return [[2] for _ in prompts]


class Nothing(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return []


class Raising(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        raise ZeroDivisionError("sudden")

    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        raise ZeroDivisionError("sudden")


class NotFinite(Wrapped):
    def logits(self, texts: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        for logits in self.subject.logits(texts):
            spoilt = logits.clone()
            spoilt[len(logits) // 2, 5] = float("nan")
            yield spoilt


class NeverStops(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return self.subject.generate(prompts, most, frozenset(), together=together)


class Loops(Wrapped):
    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        return [[7, 8, 9] * (most // 3) for _ in prompts]


class Fickle(Wrapped):
    """Another answer each time it is asked."""

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        found = super().generate(prompts, most, ends, together=together)
        found[3][1] = 100 + self.calls
        return found


class Crowded(Wrapped):
    """In a batch, the second half says what the first says."""

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        found = super().generate(prompts, most, ends, together=together)
        half = len(found) // 2
        return found[:half] + found[:half] if together else found


class Forgetful(Wrapped):
    """Answers every fourth question with another's answer."""

    def generate(self, prompts: Any, most: int, ends: Any, *, together: bool = True) -> list[list[int]]:
        found = super().generate(prompts, most, ends, together=together)
        return [found[(n + 9) % len(found)] if n % 4 == 0 else answer for n, answer in enumerate(found)]


MISBEHAVIOUR: list[tuple[type[Wrapped], dict[str, str]]] = [
    (Silent, {"smoke": "empty answers", "task": "0 of", "invariance": "another token"}),
    (StopsAtOnce, {"smoke": "empty answers", "task": "0 of"}),
    (Nothing, {"smoke": "got none", "task": "could not be run", "invariance": "could not be run"}),
    (
        Raising,
        dict.fromkeys(
            ("smoke", "agreement", "perplexity", "task", "invariance"), "ZeroDivisionError: sudden"
        ),
    ),
    (NotFinite, {"agreement": "NaN", "perplexity": "NaN"}),
    (NeverStops, {"smoke": "answers stop|tokens after an end token"}),
    (Loops, {"smoke": "answers loop", "task": "0 of"}),
    (Fickle, {"invariance": "repeated"}),
    (Crowded, {"invariance": "alone"}),
    (Forgetful, {"task": "lost"}),
]


@pytest.fixture(scope="module")
def remembered() -> dict[Any, list[list[int]]]:
    """What the sound engine behind the misbehaving ones answered."""
    return {}


@pytest.mark.parametrize("kind,expected", MISBEHAVIOUR, ids=lambda v: getattr(v, "__name__", ""))
def test_misbehaving_engines_fail(
    little_judge: Judge,
    remembered: dict[Any, list[list[int]]],
    checkpoint: Path,
    kind: type[Wrapped],
    expected: dict[str, str],
) -> None:
    def wrap(subject: ExecutorSubject) -> Wrapped:
        return kind(RememberingSubject(subject.executor, remembered))

    found = little_judge(checkpoint, *expected, wrap=wrap)
    for gate, says in expected.items():
        assert not found[gate].passed, gate
        assert re.search(says, found[gate].summary), found[gate].summary
    with pytest.raises(GateError):
        run.require_gates_passed(tuple(found.values()))


def write_old_manifest(directory: Path) -> None:
    """Write a manifest of format 1, which has no digests."""
    Manifest(artefact="answers", name="m").write(directory)
    age_manifest(directory)


def test_a_missing_or_damaged_reference_fails(
    little_judge: Judge, checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    answers = little_judge.answers
    with pytest.raises(GateError, match="reference model cannot be run"):
        TransformersSubject(tmp_path)
    with pytest.raises(ManifestError, match="no enginix"):
        kept_answers.read_reference_answers(tmp_path)
    kept_answers.write_reference_answers(answers, tmp_path)
    write_old_manifest(tmp_path)
    for damage in ("{}", "[]", "{", '{"format": 2}'):
        text = (tmp_path / kept_answers.FILE).read_text()
        (tmp_path / kept_answers.FILE).write_text(damage)
        with pytest.raises(GateError, match="answers cannot be read"):
            kept_answers.read_reference_answers(tmp_path)
        (tmp_path / kept_answers.FILE).write_text(text)
    (tmp_path / kept_answers.TENSORS).write_bytes((tmp_path / kept_answers.TENSORS).read_bytes()[:-9])
    with pytest.raises(GateError, match="answers cannot be read"):
        kept_answers.read_reference_answers(tmp_path)
    other = Judge(little_judge.tokenizer, little_judge.material, replace(answers, material="0" * 64))
    with pytest.raises(GateError, match="other questions"):
        other(checkpoint)


def test_answers_survive_a_file(little_judge: Judge, tmp_path: Path) -> None:
    answers = little_judge.answers
    kept_answers.write_reference_answers(answers, tmp_path)
    write_old_manifest(tmp_path)
    found = kept_answers.read_reference_answers(tmp_path)
    bare = {"passages": (), "hidden": (), "long": None}
    assert replace(found, **bare) == replace(answers, **bare)
    assert found.long is not None and answers.long is not None
    pairs = zip((*found.passages, found.long), (*answers.passages, answers.long), strict=True)
    for a, b in pairs:
        assert (
            torch.equal(a.ids, b.ids)
            and torch.equal(a.logs, b.logs)
            and torch.equal(a.text_logs, b.text_logs)
        )


def test_a_reference_that_answers_nothing_is_no_reference(little_judge: Judge, checkpoint: Path) -> None:
    answers = little_judge.answers
    mute = replace(answers, replies=tuple((2,) for _ in answers.replies))
    found = Judge(little_judge.tokenizer, little_judge.material, mute)(checkpoint, "task")
    assert not found["task"].passed and "answers none of the questions" in found["task"].summary


@pytest.mark.parametrize(
    "wanted,says",
    [
        ({"speed": {}}, "no gate"),
        ({"perplexity": {"raito": 1.1}}, "no bound"),
        ({"perplexity": {"ratio": "1.1"}}, "is '1.1'"),
        ({"perplexity": {"ratio": float("nan")}}, "nan"),
        ({"perplexity": {"ratio": -1}}, "-1"),
        ({"perplexity": 3}, "an object"),
        ({"coverage": {"unquantized": "all"}}, "unquantized"),
    ],
)
def test_impossible_bounds_are_refused(checkpoint: Path, wanted: Any, says: str) -> None:
    from enginix.reference import config

    with pytest.raises(UsageError, match=says):
        suite.resolve_checkpoint_bounds(config.read_executor_config(checkpoint), wanted)


def test_every_bound_has_a_reason() -> None:
    for name, row in load_table("gates")["formats"].items():
        assert len(row["reason"]) > 40, name
        assert set(row["bounds"]) == set(suite.GATES) - {suite.LOGITS}
    assert set(suite.GATES) <= set(load_table("gates")["gates"])


def test_what_a_loop_is() -> None:
    assert quality.ends_in_loop([1, 2, 3] + [4, 5] * 12) and quality.ends_in_loop([9] * 24)
    assert (
        not quality.ends_in_loop([9] * 20)
        and not quality.ends_in_loop(list(range(64)))
        and not quality.ends_in_loop([])
    )
    assert not quality.ends_in_loop([4, 5] * 12 + [6])


def test_what_a_right_answer_is() -> None:
    for reply, answer in (
        ("8", "8"), ("A byte has 8 bits.", "8"), ("Paris.", "paris"), ("法国的首都是巴黎。", "巴黎"),
    ):  # fmt: skip
        assert exact_answers.contains_answer(reply, answer)
    for reply, answer in (
        ("18", "8"),
        ("80", "8"),
        ("1.8", "8"),
        ("Parisian", "Paris"),
        ("", "8"),
        ("東", "東京"),
    ):
        assert not exact_answers.contains_answer(reply, answer)


def test_divergence_is_kullback_leiblers() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p = (torch.randn(8, 64, generator=generator).log_softmax(-1) for _ in range(2))
    kept = kept_answers.build_passage(p, tuple(range(9)))
    exact = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(quality.compute_divergence(q, kept), exact.double(), atol=1e-5)
    # Of a larger vocabulary the rest is one: never more than the whole.
    q, p = (torch.randn(8, 500, generator=generator).log_softmax(-1) for _ in range(2))
    kept = kept_answers.build_passage(p, tuple(range(9)))
    found = quality.compute_divergence(q, kept)
    assert bool((found <= (p.exp() * (p - q)).sum(-1) + 1e-5).all()) and bool((found > 0).all())


@pytest.mark.parametrize("size", [300, 33_000, 33_077])
def test_the_most_likely_tokens_of_a_large_vocabulary(size: int) -> None:
    logs = torch.randn(5, size, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    values, ids = kept_answers.select_most_likely(logs, 64)
    expected = logs.topk(64, -1)
    assert torch.equal(values, expected.values) and torch.equal(ids, expected.indices)


def test_a_gate_judges_what_its_row_says() -> None:
    """Of every kind of subject there are gates, and every default of a kind is one of its own."""
    table = load_table("gates")
    for name, row in table["gates"].items():
        assert row["of"] and set(row["of"]) <= {"checkpoint", "engine", "export", "network"}, name
    for kind, row in table["kinds"].items():
        if kind != "about":
            assert {*row["default"], *row["withContextLogits"]} <= set(list_gates("engine")), kind
