"""A Python that runs programs in forks of one process, which has imported PyTorch and NVIDIA's exporter.

python warm_python.py MODEL        MODEL is exported once before, for what the exporter imports late

Each line on standard input is a JSON object: `words` as on Python's command line, `env`, `cwd`, and files
for `out` and `err`; each answer is a line with the exit status. Programs that enginix starts in this Python
are forks as well, each in a session of its own.

Where the environment names a folder as ENGINIX_TEST_GRAPHS, a graph in it serves every network that is
equal: variants of a model that differ by texts and end tokens alone. NVIDIA's exporter writes the rest.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
import runpy
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from enginix import process
from enginix.process_group import kill_tree

EXPORTER = Path(sys.executable).parent / "tensorrt-edgellm-export"
GRAPHS = "ENGINIX_TEST_GRAPHS"
SECONDS = 600  # after which a program is killed
Wait = Callable[[], "process.subprocess.CompletedProcess[str]"]


def run_program_here(words: list[str]) -> None:
    """Run what Python would run: `-m MODULE`, `-c TEXT` or a file, with arguments."""
    sys.modules.pop("__main__")
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        if not hasattr(sys.modules.get(words[1]), "__path__"):
            sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], os.getcwd()
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


def run_in_fork(words: list[str], env: dict[str, str], cwd: str) -> NoReturn:
    """Run a program in this process, which is a fork, and end it as Python does."""
    status = 1
    try:
        signal.alarm(SECONDS)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        tempfile.tempdir = None
        run_program_here(words)
        status = 0
    except SystemExit as e:
        if isinstance(e.code, str):
            sys.stderr.write(f"{e.code}\n")
        else:
            status = e.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def start_fork(words: list[str], env: dict[str, str], cwd: str, out: int, err: int) -> int:
    """Return the process id of a fork that runs a program."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    run_in_fork(words, env, cwd)


def fork_programs_of_enginix() -> None:
    """Have enginix's programs in this Python be forks too."""
    start_program, run_program = process.start_program, process.run_program

    @contextlib.contextmanager
    def start(args: Any, *, env: Any = None, cwd: Path | None = None) -> Iterator[Wait]:
        words = [os.fspath(a) for a in args]
        if words[0] != sys.executable:
            with start_program(args, env=env, cwd=cwd) as wait_for_program:
                yield wait_for_program
            return
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            settings = process.build_environment(env)
            settings |= {GRAPHS: os.environ[GRAPHS]} if GRAPHS in os.environ else {}
            pid = start_fork(words[1:], settings, str(cwd or Path.cwd()), out.fileno(), err.fileno())
            ended: list[int] = []

            def wait() -> process.subprocess.CompletedProcess[str]:
                if not ended:
                    ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                texts = []
                for stream in (out, err):
                    stream.seek(0)
                    texts.append(stream.read().decode("utf-8", "replace"))
                return process.subprocess.CompletedProcess(words, ended[0], *texts)

            try:
                yield wait
            finally:
                if not ended:
                    kill_tree(pid)
                    wait()

    def run(args: Any, *, env: Any = None, cwd: Path | None = None, **options: Any) -> Any:
        if os.fspath(args[0]) != str(EXPORTER):
            return run_program(args, env=env, cwd=cwd, **options)
        assert options == {"check": False}
        with start([sys.executable, *args], env=env, cwd=cwd) as wait:
            return wait()

    process.start_program, process.run_program = start, run


def digest_network(network: Any) -> str:
    """Return a digest of what a graph comes of: modules, configuration, and every tensor's values."""
    import torch

    digest = hashlib.sha256(f"{network!r}{network.config!r}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def share_graphs() -> None:
    """Have the exporter take a graph that it made of an equal network before, where a folder is named."""
    from tensorrt_edgellm.onnx import export

    make_graph = export._export_model

    def make_or_copy(network: Any, output: str, **options: Any) -> Any:
        if GRAPHS not in os.environ or any(options.values()):
            return make_graph(network, output, **options)
        stored, directory = Path(os.environ[GRAPHS]) / digest_network(network), Path(output).parent
        if not stored.exists():
            before = set(directory.iterdir())
            assert not make_graph(network, output, **options)
            stored.mkdir(parents=True)
            for path in set(directory.iterdir()) - before:
                shutil.copyfile(path, stored / path.name)
        else:
            shutil.copytree(stored, directory, dirs_exist_ok=True)
        return {}

    export._export_model = make_or_copy


def warm_up(model: str) -> None:
    """Import what the programs import, the exporter's late imports by an export."""
    import transformers
    from tensorrt_edgellm.scripts.export import main

    import enginix.cli
    import enginix.kinds.edgellm.execution.direct_graph
    import enginix.kinds.edgellm.execution.model_logits
    import enginix.kinds.edgellm.export  # noqa: F401

    for family in ("Llama", "Qwen2", "Qwen3", "Mistral"):
        getattr(transformers, f"{family}ForCausalLM")
    before = sys.argv
    with tempfile.TemporaryDirectory() as directory:
        sys.argv = [str(EXPORTER), model, directory]
        main()
    sys.argv = before
    sys.stdout.flush()
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    share_graphs()
    fork_programs_of_enginix()
    gc.collect()
    gc.freeze()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    requests = os.fdopen(os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    warm_up(sys.argv[1])
    for line in requests:
        request = json.loads(line)
        out, err = (os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err"))
        pid = start_fork(request["words"], request["env"], request["cwd"], out, err)
        os.close(out)
        os.close(err)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answers.write(f"{status}\n")
        answers.flush()


if __name__ == "__main__":
    main()
