"""Starts Triton on a repository, and knows that it answers.

  enginix serve REPOSITORY --tritonserver DIR                         until SIGINT or SIGTERM
  enginix serve REPOSITORY --tritonserver DIR --ask "Once upon a time" --exit-after-ask

Everything that can be wrong is looked for first: the repository as a whole, its engine against the server's
runtime and this machine's GPU and driver, the Python environment against Triton's stub, shared memory, the
three ports. Then tritonserver is started on loopback, model control off, nothing filled in by
auto-completion. It counts as ready when a generation succeeded (with the golden tokens of the engine's
manifest where it has some), never before; systemd is told then (Type=notify).

With --openai-frontend, Triton's own OpenAI frontend of that image runs in tritonserver's place, with the
endpoints beside it (enginix openai-frontend makes the directory; docs/openai.md).

With --rootfs, tritonserver is the one inside the root file system of the runtime's image, and runs there
(bubblewrap); the GPU is compared with the engine first. An engine of several ranks is started by mpirun, one
rank a GPU; with --hosts on several machines, where enginix serve runs in the runtime's image on each: with
--worker on all but the first, which starts their ranks over ssh or kubectl exec. Model control, client shared
memory, trace and log settings are closed: by --admin-key-file they open to whoever sends its content as the
header enginix-key.

DIR holds bin/tritonserver and backends/python/{libtriton_python.so,triton_python_backend_stub,
triton_python_backend_utils.py}; $ENGINIX_TRITONSERVER is its default. The Python models run in the
environment of --python, which must be the stub's Python version and have torch, tokenizers and a NumPy that
the stub can read.

--dry-run prints the exact command and environment; --check runs the preflight; neither starts anything.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from enginix import console

if TYPE_CHECKING:
    from enginix.serve.client import Client
    from enginix.serve.frontend import Frontend
    from enginix.serve.launch import Inside, Plan
    from enginix.serve.preflight import Repository
    from enginix.serve.tritonserver import TritonServer


class _Stopped(Exception):
    """SIGINT or SIGTERM came."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "repository", type=Path, metavar="REPOSITORY", help="directory that enginix triton-repo wrote"
    )
    parser.add_argument("--tritonserver", type=Path, metavar="DIR", help="the installation (see above)")
    parser.add_argument(
        "--python",
        type=Path,
        metavar="P",
        help="python3 whose environment runs the models (default: this one)",
    )
    parser.add_argument(
        "--model-runtime",
        metavar="NAME",
        help="the installation's runtime, where its runtime.json does not say it",
    )
    parser.add_argument(
        "--rootfs", type=Path, metavar="DIR", help="root file system of the runtime's image, to run inside"
    )
    parser.add_argument(
        "--pin", type=Path, metavar="FILE", help="the runtime's pin: the image's own environment"
    )
    parser.add_argument("--driver", type=Path, metavar="DIR", help="the GPU driver's root (default: found)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="IP", help="address of all three (default: loopback)"
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port", type=int, default=port, metavar="N", help=f"default: {port}; 0 takes a free one"
        )
    for name in ("grpc", "metrics"):
        parser.add_argument(f"--no-{name}", action="store_true", help=f"no {name} endpoint")
    parser.add_argument(
        "--admin-key-file", type=Path, metavar="FILE", help="its content opens the restricted APIs"
    )
    parser.add_argument(
        "--triton-flag",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of tritonserver, for instance http-thread-count=16",
    )
    parser.add_argument(
        "--openai-frontend", type=Path, metavar="DIR", help="what enginix openai-frontend made, to be started"
    )
    parser.add_argument(
        "--openai-port", type=int, default=9000, metavar="N", help="its port (default: 9000; 0: any free one)"
    )
    parser.add_argument(
        "--openai-key-file", type=Path, metavar="FILE", help="its content is the clients' api_key"
    )
    parser.add_argument(
        "--openai-flag",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the frontend, for instance default-max-tokens=256",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable that the server sees, for instance NCCL_DEBUG=INFO",
    )
    parser.add_argument(
        "--gpus", metavar="LIST", help="GPUs that the server sees, by index or UUID, joined by commas"
    )
    spread = parser.add_mutually_exclusive_group()
    spread.add_argument(
        "--hosts", metavar="LIST", help="machines of the ranks and their slots, this one first: a:8,b:8"
    )
    spread.add_argument("--hostfile", type=Path, metavar="FILE", help="the same, a line 'a slots=8' each")
    spread.add_argument(
        "--worker",
        type=int,
        metavar="N",
        help="run the preflight for N ranks, then wait: another machine starts them here",
    )
    parser.add_argument(
        "--agent",
        default="ssh",
        metavar="NAME",
        help="starts ranks on other machines: ssh (default), kubectl, or a program that takes HOST COMMAND",
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        default=Path("/tmp/enginix-worker"),
        metavar="FILE",
        help="there while --worker waits (default: /tmp/enginix-worker)",
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=600,
        metavar="S",
        help="seconds until it must answer (default: 600)",
    )
    parser.add_argument(
        "--exit-timeout",
        type=int,
        default=30,
        metavar="S",
        help="seconds for running requests at the end (default: 30)",
    )
    parser.add_argument("--check", action="store_true", help="run the preflight only")
    parser.add_argument("--dry-run", action="store_true", help="print command and environment only")
    parser.add_argument("--ask", metavar="PROMPT", help="ask this once it is ready, whole and streamed")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of --ask (default: 64)")
    parser.add_argument("--exit-after-ask", action="store_true", help="stop the server after the answer")
    parser.add_argument(
        "--verbose", action="store_true", help="show the server's log while it starts, and more of it"
    )


def run(args: argparse.Namespace) -> int:
    """Serves."""
    from enginix import manifest
    from enginix.errors import UsageError
    from enginix.runtime import driver as drivers
    from enginix.runtime import table as runtimes
    from enginix.runtime.sandbox import check_namespaces
    from enginix.serve import flags, hosts, launch, ports, preflight, tritonserver

    if args.exit_after_ask and args.ask is None:
        raise UsageError("needs --ask", where="--exit-after-ask")
    server = _server(args)
    repository = preflight.check_repository(args.repository, server)
    kind = repository.manifest.kind or "reference"
    machines: tuple[hosts.Host, ...] = ()
    here: int | None = None
    if args.hosts is not None or args.hostfile is not None:
        machines = hosts.parse(args.hosts) if args.hosts is not None else hosts.read(args.hostfile)
        hosts.check(machines, repository.ranks, kind, server.rootfs is not None, repository.engine)
        here = machines[0].slots
    elif args.worker is not None:
        here = args.worker
        if kind != "tensorrt" or not 0 < here < repository.ranks:
            raise UsageError(
                f"{here} ranks on this machine, of an engine of kind {kind} with {repository.ranks}",
                where="--worker",
                fix="the slots that --hosts of the first machine gives it",
            )
        if server.rootfs is not None:
            raise UsageError(
                "--rootfs makes a sandbox in which nothing is started from outside",
                where="--worker",
                fix="run it in a container of the runtime's image",
            )
    if kind == "tensorrt" and args.worker is None and len(machines) < 2:
        hosts.check_alone(repository.ranks, repository.engine)
    endpoints = [n for n in ("http", "grpc", "metrics") if not getattr(args, f"no_{n}", False)]
    named = [(f"--{n}-port", getattr(args, f"{n}_port")) for n in endpoints]
    ports.family(args.host)
    gpus = launch.check_gpus(args.gpus)
    driver = drivers.find(args.driver)
    inside = None
    if server.rootfs is not None:
        runtime = runtimes.find(server.runtime, repository.manifest.kind, args.pin)
        inside = launch.Inside(runtime, driver, repository.reads)
    door = _frontend(args, server, repository, inside)
    if door is not None and inside is not None:
        inside = replace(inside, reads=(*inside.reads, door.directory))
        endpoints = ["http", "grpc", "openai"]
        named = [(f"--{n}-port", getattr(args, f"{n}_port")) for n in endpoints]
    options = launch.Plan(
        server=server,
        repository=repository.directory,
        python=(args.python or Path(sys.executable).with_name("python3")).absolute(),
        endpoints=launch.Endpoints(args.host, 0, 0, 0),
        exit_timeout=launch.check_exit_timeout(args.exit_timeout),
        verbose=1 if args.verbose else 0,
        gpus=gpus,
        ranks=repository.ranks,
        inside=inside,
        flags=flags.checked(args.triton_flag, server.version),
        admin_key=flags.admin_key(args.admin_key_file),
        environ=_workers(repository) | launch.check_environ(args.env),
        hosts=machines,
        agent=hosts.find_agent(args.agent) if len(machines) > 1 else None,
    )

    if repository.ranks > 1:
        room = options.room(Path("$STATE"))
        seen = options.environment(Path("$STATE")) if room is None else room.environment()
        options = replace(options, mpirun=preflight.find_mpirun(server, seen))

    def plan(numbers: list[int]) -> launch.Plan:
        given = dict(zip(endpoints, numbers, strict=True))
        found = launch.Endpoints(args.host, given["http"], given.get("grpc"), given.get("metrics"))
        if door is not None:
            return replace(options, endpoints=found, frontend=replace(door, port=given["openai"]))
        return replace(options, endpoints=found)

    if repository.instances > args.exit_timeout - 10:
        console.say(
            f"warning: {repository.instances} Python model instances end one after the other, about a second "
            f"each; with --exit-timeout {args.exit_timeout} a stop may end with status 5"
        )
    if args.dry_run:
        described = launch.describe(plan([port for _, port in named]))
        console.result(described, launch.as_text(described), as_json=args.json)
        return 0
    preflight.check_backend(repository, server)
    preflight.check_open_files()
    if server.rootfs is None:
        tritonserver.check_python(options.python, server, repository.manifest.kind or "reference")
        # An image's /dev/shm is a file system of its own.
        preflight.check_shared_memory(repository.instances)
    else:
        check_namespaces()
    if (note := manifest.ungated(repository.manifest)) is not None:
        console.say(f"note: {note}")
    for note in preflight.check_gpus(repository, driver, gpus, here):
        console.say(f"note: {note}")
    numbers = ports.reserve(args.host, named) if args.worker is None else []
    if args.check:
        console.result(
            {
                "repository": str(repository.directory),
                "runtime": server.runtime,
                "tritonserver": server.version,
                "ranks": repository.ranks,
                "ports": numbers,
                "ok": True,
            },
            f"{repository.manifest.name}: repository, runtime {server.runtime} "
            f"(tritonserver {server.version}), Python, GPU, open files, shared memory, ports "
            f"{', '.join(map(str, numbers))}: fine",
            as_json=args.json,
        )
        return 0
    if args.worker is not None:
        from enginix.serve.worker import wait

        return wait(args.ready_file)
    return _serve(args, plan(numbers), repository)


def _server(args: argparse.Namespace) -> TritonServer:
    from enginix import manifest
    from enginix.errors import UsageError
    from enginix.serve import tritonserver

    if args.rootfs is None:
        return tritonserver.find(args.tritonserver, args.model_runtime)
    if args.tritonserver is not None:
        raise UsageError("--tritonserver and --rootfs exclude each other", fix="pass one of them")
    named = args.model_runtime or manifest.read(args.repository, "triton-repository").runtime.get("id")
    return tritonserver.find_in_image(args.rootfs, str(named))


def _frontend(
    args: argparse.Namespace, server: TritonServer, repository: Repository, inside: Inside | None
) -> Frontend | None:
    """Triton's OpenAI frontend, where it was asked for; refuses what it cannot do."""
    from enginix.errors import UsageError
    from enginix.serve import frontend
    from enginix.serve.launch import LOOPBACK

    if args.openai_frontend is None:
        if args.openai_key_file is not None or args.openai_flag:
            option = "--openai-flag" if args.openai_flag else "--openai-key-file"
            raise UsageError("needs --openai-frontend", where=option)
        return None
    if inside is None or repository.engine is None:
        raise UsageError("it is part of a runtime's image", where="--openai-frontend", fix="pass --rootfs")
    if (why := frontend.refusal(repository.manifest.kind or "", repository.ranks)) is not None:
        raise UsageError(why, where="--openai-frontend", fix="serve the engine with mkServe (trtllm-serve)")
    refused = (
        (args.triton_flag, "--triton-flag", "it takes no option of tritonserver"),
        (args.admin_key_file, "--admin-key-file", "its KServe endpoints restrict no API"),
        (args.no_grpc, "--no-grpc", "it starts HTTP and gRPC together"),
        (args.host not in LOOPBACK, "--host", "its endpoints share one address and have no key but OpenAI's"),
    )
    for given, option, why in refused:
        if given:
            raise UsageError(f"Triton's OpenAI frontend: {why}", where=option, fix="leave it out")
    return frontend.find(
        args.openai_frontend,
        inside.runtime,
        repository.engine / "tokenizer",
        args.openai_port,
        frontend.checked(args.openai_flag, server.version),
        args.openai_key_file,
    )


def _workers(repository: Repository) -> dict[str, str]:
    """The LLM class starts a process a GPU; with one it computes in its own."""
    if repository.manifest.kind != "llmapi":
        return {}
    return {"TLLM_WORKER_USE_SINGLE_PROCESS": "1" if repository.manifest.target.get("count", 1) == 1 else "0"}


def _serve(args: argparse.Namespace, plan: Plan, repository: Repository) -> int:
    from enginix.serve import frontend, hosts
    from enginix.serve.client import Client
    from enginix.serve.launch import LOOPBACK
    from enginix.serve.notify import notify
    from enginix.serve.readiness import await_ready, golden
    from enginix.serve.supervisor import Supervised, explain

    if args.host not in LOOPBACK:
        console.say(
            f"warning: {args.host} is reachable from outside; Triton has no authentication and no TLS on HTTP"
        )
    quiet = True

    def show(line: str) -> None:
        if args.verbose or not quiet:
            console.say(line)

    # From here on SIGTERM and SIGINT end the server first, and then this process with status 0.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _raise_stopped)
    client = Client(args.host if args.host not in ("0.0.0.0", "::") else "127.0.0.1", plan.endpoints.http)
    begun = time.monotonic()
    try:
        if plan.agent is not None:
            orted = str(Path(plan.mpirun).with_name("orted"))
            needed = [orted, str(plan.server.program), str(plan.repository)]
            hosts.await_hosts(plan.hosts, plan.agent, needed, args.start_timeout)
        server = Supervised(plan, show)
    except _Stopped:
        return 0
    status = 0
    try:
        with server:
            try:
                seconds = await_ready(
                    server,
                    client,
                    golden(repository.manifest),
                    max(1.0, args.start_timeout - (time.monotonic() - begun)),
                    repository.manifest.kind or "reference",
                )
                if plan.frontend is not None:
                    frontend.await_answer(plan.frontend, args.host, server, args.start_timeout - seconds)
                    console.say(f"OpenAI's interface: {plan.frontend.url(args.host)}, model ensemble")
                notify("READY=1")
                console.say(
                    f"{repository.manifest.name} answers at {client.url} after {seconds:.1f} s "
                    f"(gRPC {plan.endpoints.grpc or 'off'}, metrics {plan.endpoints.metrics or 'off'})"
                )
                console.say(f"try: {curl(client)}")
                asked = _ask(args, client) if args.ask is not None else None
                if args.json:
                    console.result(_described(plan, seconds, asked), "", as_json=True)
                if not args.exit_after_ask:
                    quiet = args.ask is not None and not args.verbose
                    status = server.wait()
                    raise explain(server.last_lines(400), status, plan.hosts)
            except _Stopped:
                pass
            finally:
                # A second signal is an order to end at once; what is left is removed all the same.
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, lambda *_: server.kill())
            notify("STOPPING=1")
            status = server.stop()
            console.say("stopped" if status == 0 else f"tritonserver ended with status {status}")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
    return 0 if status == 0 else 5


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def curl(client: Client) -> str:
    """The line that asks the server from a shell."""
    body = json.dumps({"text_input": "Once upon a time", "max_tokens": 32})
    return f"curl -s {client.url}/v2/models/ensemble/generate -d '{body}'"


def _ask(args: argparse.Namespace, client: Client) -> Any:
    from enginix.serve.ask import ask

    def piece(text: str) -> None:
        if not args.json:
            print(text, end="", flush=True)

    if not args.json:
        print(args.ask, end="", flush=True)
    answer = ask(client, args.ask, args.max_tokens, piece)
    if not args.json:
        print(flush=True)
    if answer.streamed != answer.text:
        console.say("warning: the streamed text differs from the text of /generate")
    console.say(
        f"{answer.tokens} tokens, {answer.tokens_per_second:.1f} tokens/s, "
        f"first after {answer.first_token_seconds * 1000:.0f} ms, finish reason {answer.finish_reason}"
    )
    return answer


def _described(plan: Plan, seconds: float, answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ready": True,
        "seconds": round(seconds, 3),
        "host": plan.endpoints.host,
        "httpPort": plan.endpoints.http,
        "grpcPort": plan.endpoints.grpc,
        "metricsPort": plan.endpoints.metrics,
    }
    if plan.frontend is not None:
        found["openaiPort"] = plan.frontend.port
    if answer is not None:
        found["answer"] = {
            "text": answer.text,
            "streamed": answer.streamed,
            "tokens": answer.tokens,
            "tokensPerSecond": round(answer.tokens_per_second, 1),
            "firstTokenSeconds": round(answer.first_token_seconds, 4),
            "finishReason": answer.finish_reason,
        }
    return found
