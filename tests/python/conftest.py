"""Slow tests run where ENGINIX_SLOW is set, as continuous integration does, and when they are named.

Property tests run from fixed seeds. With ENGINIX_FUZZ (tests/fuzz.py) they explore from random ones, and the
file that it names gets their failures.
"""

import fcntl
import gc
import json
import os
import random
import shutil
import signal
import types
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings
from hypothesis.internal.conjecture import providers

# Started in the background, the tests ignore SIGINT, and every program that they start would as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is loaded: a process a core, and matrices that are too small for several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for several threads, they sleep while they wait: spinning takes other processes' cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
FUZZING = os.environ.get("ENGINIX_FUZZ")
HERE = Path(__file__).parent
# Deadlines and HealthCheck.too_slow measure the machine's load; a database brings examples of other runs.
# Fixtures of a function are directories here, which examples may share.
_COMMON = settings(
    database=None,
    deadline=None,
    print_blob=bool(FUZZING),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("fixed", _COMMON, derandomize=True)
EVERY_EXAMPLE = bool(FUZZING or os.environ.get("ENGINIX_SLOW"))
# Hypothesis derandomizes where continuous integration is recognized by its environment.
settings.register_profile("fuzz", _COMMON, derandomize=False, suppress_health_check=list(HealthCheck))
settings.load_profile("fuzz" if FUZZING else "fixed")
if not FUZZING:
    # Hypothesis draws constants of the loaded modules: other examples beside other tests, and after every
    # change of the code. Without them a test always has its own (test_property_seeds.py).
    providers.is_local_module_file = lambda path: False


def reduce_examples(items: list[pytest.Item]) -> None:
    """Let property tests meet a quarter of their examples, at least 25, beside all that are pinned."""
    tests = {getattr(item.obj, "__func__", item.obj) for item in items if isinstance(item, pytest.Function)}
    for test in filter(is_hypothesis_test, tests):
        own = test._hypothesis_internal_use_settings or settings.default
        fewer = min(own.max_examples, max(25, own.max_examples // 4))
        test._hypothesis_internal_use_settings = settings(own, max_examples=fewer)


def order_files(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, those of slow tests alone first: none runs alone at the end."""
    names = (HERE / "longest_files.txt").read_text().splitlines()
    order = {HERE / name: number for number, name in enumerate(names)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects tests without a collector of garbage, which later passes over what was collected."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order_files(items)
    if not EVERY_EXAMPLE:
        reduce_examples(items)
    if os.environ.get("ENGINIX_SLOW") or config.option.markexpr or any("::" in arg for arg in config.args):
        return
    skip = pytest.mark.skip(reason="slow: ENGINIX_SLOW=1 runs it")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a path once for all processes of the run, which leave it as it is: ``made_once(name, make)``."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        out, done = shared / name / "out", shared / name / "done"
        maker = make.__code__.co_filename if isinstance(make, types.FunctionType) else ""
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(shared / name, ignore_errors=True)
                (shared / name).mkdir()
                make(out)
                done.write_text(maker)
            assert done.read_text() == maker, f"{name} is also the name of what {done.read_text()} makes"
        return out

    return make_once


@pytest.fixture
def chance() -> random.Random:
    """Random numbers of a test that is no property test, such as moments to kill a process at."""
    seed = random.SystemRandom().getrandbits(32) if FUZZING else 7
    print(f"chance: random.Random({seed})")
    return random.Random(seed)


class EarlyFailures:
    """Names a failed test at once: a run that is cut short says what failed until then."""

    def __init__(self, config: pytest.Config) -> None:
        self.plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # pytest registers its reporter after this plugin.
        terminal = self.plugins.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\nfailed: {report.nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(EarlyFailures(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows a counterexample as the line that pins it."""
    report = yield
    calls = getattr(item, "_hypothesis_failing_examples", ())
    examples = [f"@example{call[call.index('(') :]}" for call in calls]
    if report.failed and examples:
        report.sections.append(("to pin above the test", "\n".join(examples)))
    if report.failed and FUZZING:
        with open(FUZZING, "a") as file:
            row = {
                "test": item.nodeid,
                "examples": examples,
                "report": report.longreprtext + report.capstdout,
            }
            file.write(json.dumps(row) + "\n")
    return report
