"""Run tasks in a few threads, started in their order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Task = TypeVar("Task")

MAX_THREADS = 4  # the kernel serializes writers of one file: more threads would only wait


def count_usable_threads() -> int:
    """Return the number of cores that this process may use, up to ``MAX_THREADS``."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def run_in_order(
    tasks: Iterator[Task],
    workers: Sequence[Callable[[Task], int]],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Run every task on one of ``workers``, each a thread; the caller's thread is the first of them.

    After an error no task is started. Of several errors the earliest task's is raised: it and all earlier
    tasks have been started by then, so the same input gives the same error for any scheduling of threads.

    Args:
        workers: each runs a task and returns the amount of work done.
        progress: called in the caller's thread with the sum of these amounts.
    """
    lock, stop = threading.Lock(), threading.Event()
    failures: list[tuple[int, BaseException]] = []
    numbered, done = enumerate(tasks), 0

    def work(worker: Callable[[Task], int], first: bool) -> None:
        nonlocal done
        number, amount = -1, 0
        try:
            while True:
                with lock:
                    done += amount
                    number, task = (-1, None) if stop.is_set() else next(numbered, (-1, None))
                if task is None:
                    return
                amount = worker(task)
                if first:
                    progress(done)
        except BaseException as e:  # raised again below, in the caller's thread
            stop.set()
            failures.append((number, e))

    other_threads = [threading.Thread(target=work, args=(w, False), daemon=True) for w in workers[1:]]
    for thread in other_threads:
        thread.start()
    work(workers[0], True)
    for thread in other_threads:
        thread.join()
    if failures:
        raise min(failures, key=lambda f: f[0])[1]
