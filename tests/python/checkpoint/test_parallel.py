"""Threads: the bytes, and which error is raised, depend on the input alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import random_models

from enginix.checkpoint import write
from enginix.checkpoint.convert import ConvertOptions, derive_conversion_spec
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.parallel import run_in_order


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_bytes_do_not_depend_on_threads_or_their_order(
    dtype: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_models.config("LlamaForCausalLM", num_key_value_heads=4, hidden_size=64, vocab_size=999)
    random_models.write(tmp_path / "model", model)
    planned = derive_conversion_spec(
        tmp_path / "model", ConvertOptions(dtype=dtype, mapping=CheckpointMapping(ranks))
    )
    monkeypatch.setattr("enginix.checkpoint.byte_sources.CHUNK", 1000)  # many blocks of a small model
    monkeypatch.setattr("enginix.checkpoint.write.COPY", 777)
    found = []
    for threads in (1, 2, 7):
        out = tmp_path / str(threads)
        out.mkdir()
        write.write_ranks(out, planned.ranks, threads=threads)
        found.append(contents(out))
    # The tasks in the opposite order: each knows its place.
    forwards = write._iterate_tasks
    monkeypatch.setattr(write, "_iterate_tasks", lambda *args: iter(list(forwards(*args))[::-1]))
    (tmp_path / "backwards").mkdir()
    write.write_ranks(tmp_path / "backwards", planned.ranks, threads=2)
    assert found == [contents(tmp_path / "backwards")] * 3
    assert len(found[0]) == ranks


def test_every_task_runs_once_and_begins_in_order() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def worker(task: int) -> int:
        with lock:
            begun.append(task)
        return task

    run_in_order(iter(range(1, 200)), [worker] * 3)
    assert sorted(begun) == list(range(1, 200))


def test_the_earliest_error_is_raised_whichever_thread_meets_its_own_first() -> None:
    later_failed = threading.Event()

    def worker(task: int) -> int:
        if task == 3:
            assert later_failed.wait(60)
            raise ValueError("third")
        if task == 4:
            later_failed.set()
            raise ValueError("fourth")
        return 0

    with pytest.raises(ValueError, match="third"):
        run_in_order(iter(range(1, 1000)), [worker, worker])


def test_nothing_begins_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    stopped = threading.Event()

    class Stop(threading.Event):
        """The event that the error sets."""

        def set(self) -> None:
            super().set()
            stopped.set()

    monkeypatch.setattr("enginix.checkpoint.parallel.threading.Event", Stop)

    def worker(task: int) -> int:
        begun.append(task)
        if task == 5:
            raise ValueError("fifth")
        # What runs already goes on until the error is known.
        if task > 5:
            assert stopped.wait(60)
        return 0

    with pytest.raises(ValueError, match="fifth"):
        run_in_order(iter(range(1, 1000)), [worker, worker])
    assert max(begun) <= 6
