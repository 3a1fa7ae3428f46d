"""A server from its start to its end."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from types import FrameType

from enginix import console
from enginix.commands.serve import report
from enginix.serve import hosts
from enginix.serve.client import Client
from enginix.serve.launch import LOOPBACK, Plan
from enginix.serve.notify import notify
from enginix.serve.preflight import Repository
from enginix.serve.readiness import await_ready, golden
from enginix.serve.supervisor import Supervised, explain


class _Stopped(Exception):
    """SIGINT or SIGTERM came."""


def serve(args: argparse.Namespace, plan: Plan, repository: Repository) -> int:
    """Starts it, tells when it answers, and waits for its end or for SIGTERM; returns the exit code."""
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
                notify("READY=1")
                server.forget_start()
                console.say(
                    f"{repository.manifest.name} answers at {client.url} after {seconds:.1f} s "
                    f"(gRPC {plan.endpoints.grpc or 'off'}, metrics {plan.endpoints.metrics or 'off'})"
                )
                console.say(f"try: {report.curl(client)}")
                asked = report.ask(args, client) if args.ask is not None else None
                if args.json:
                    console.result(report.described(plan, seconds, asked), "", as_json=True)
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
