"""A server from its start to its end."""

from __future__ import annotations

import argparse
import re
import signal
import time
from pathlib import Path
from types import FrameType

from enginix import console
from enginix.cli.serving.serve import report
from enginix.kinds.registry import DEFAULT_KIND
from enginix.manifest import explain_unverified
from enginix.notify import notify_systemd
from enginix.ports import explain_open_address, reachable_address
from enginix.serve import hosts
from enginix.serve.client import TritonClient
from enginix.serve.launch import LaunchSpec
from enginix.serve.preflight import ServedRepository
from enginix.serve.readiness import await_ready, read_golden
from enginix.serve.supervisor import SupervisedServer, explain_exit

# What Triton logs at every stop.
_ROUTINE = re.compile(r"(?:rank \d+: )?(?:I\d{4} |Signal \(\d+\) received)")


class _StopRequested(Exception):
    """SIGINT or SIGTERM came."""


def serve_repository(args: argparse.Namespace, spec: LaunchSpec, repository: ServedRepository) -> int:
    """Start a server, report when it answers, wait for its end or SIGTERM, and return the exit code."""
    console.print_notes([explain_open_address(args.host, "Triton")], "warning")
    quiet = True
    is_stopping = False

    def show(line: str) -> None:
        is_routine = is_stopping and _ROUTINE.match(line) is not None
        if args.verbose or not (quiet or is_routine):
            console.print_message(line)

    # From here on SIGTERM and SIGINT end the server first, and then this process with status 0.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _raise_stopped)
    client = TritonClient(reachable_address(args.host), spec.endpoints.http)
    begun = time.monotonic()
    try:
        if spec.agent is not None:
            orted = str(Path(spec.mpirun).with_name("orted"))
            needed = [orted, str(spec.server.program), str(spec.repository)]
            hosts.await_hosts(spec.hosts, spec.agent, needed, args.start_timeout)
        server = SupervisedServer(spec, show)
    except _StopRequested:
        return 0
    status = 0
    try:
        with server:
            try:
                seconds = await_ready(
                    server,
                    client,
                    read_golden(repository.manifest),
                    max(1.0, args.start_timeout - (time.monotonic() - begun)),
                    repository.manifest.kind or DEFAULT_KIND,
                )
                # All files are loaded now, and clients have no answer yet.
                repository.require_unchanged()
                notify_systemd("READY=1")
                server.forget_start()
                console.print_message(
                    f"{repository.manifest.name} answers at {client.url} after {seconds:.1f} s "
                    f"(gRPC {spec.endpoints.grpc or 'off'}, metrics {spec.endpoints.metrics or 'off'})"
                )
                console.print_notes([explain_unverified(repository.manifest)], "warning")
                console.print_message(f"try: {report.format_curl(client)}")
                answer = report.ask_and_print(args, client) if args.ask is not None else None
                if args.json:
                    described = report.describe_server(spec, repository.manifest, seconds, answer)
                    console.print_result(described, "")
                if not args.exit_after_ask:
                    quiet = args.ask is not None and not args.verbose
                    status = server.wait(client.live)
                    raise explain_exit(server.last_lines(400), status, spec.hosts)
            except _StopRequested:
                is_stopping = True
            finally:
                # A second signal is an order to end at once; what is left is removed all the same.
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, lambda *_: server.kill())
            notify_systemd("STOPPING=1")
            status = server.stop()
            console.print_message("stopped" if status == 0 else f"tritonserver ended with status {status}")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
    return 0 if status == 0 else 5


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise _StopRequested
