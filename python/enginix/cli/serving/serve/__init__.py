"""Starts Triton on a repository, and waits until it has answered.

  enginix serve REPOSITORY --tritonserver DIR                         until SIGINT or SIGTERM
  enginix serve REPOSITORY --tritonserver DIR --ask "Once upon a time" --exit-after-ask

Everything is checked first: the repository as a whole, its engine against the server's runtime and this
machine's GPU and driver, the Python environment against Triton's stub, shared memory, the three ports. Then
tritonserver is started on loopback, with model control and auto-completion off. It counts as ready when a
generation succeeded (with the golden tokens of the engine's manifest, if any), never before; systemd is
notified then (Type=notify).

With --rootfs, tritonserver is the one inside the root file system of the runtime's image, and runs there
(bubblewrap); the GPU is compared with the engine first. An engine of several ranks is started by mpirun, one
rank a GPU; with --hosts on several machines, where enginix serve runs in the runtime's image on each: with
--worker on all but the first, which starts their ranks over ssh or kubectl exec. Model control, client shared
memory, trace and log settings are closed; with --admin-key-file they are open to requests that have the key
in the header enginix-key.

DIR holds bin/tritonserver and backends/python/{libtriton_python.so,triton_python_backend_stub,
triton_python_backend_utils.py}; $ENGINIX_TRITONSERVER is its default. The Python models run in the
environment of --python, which must be the stub's Python version and have torch, tokenizers and a NumPy that
the stub can read.

--dry-run prints the exact command and environment; --check runs the preflight; neither starts anything.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from enginix import console
from enginix.cli.serving.serve.arguments import add_arguments

if TYPE_CHECKING:
    from enginix.cli.serving.serve.request import ServeRequest

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Start the server, or print or check its launch."""
    from enginix import manifest, ports
    from enginix.cli.serving.serve import request
    from enginix.serve import launch

    serve_request = request.read_serve_request(args)
    repository, server = serve_request.repository, serve_request.plan.server
    if repository.instances > args.exit_timeout - 10:
        console.print_message(
            f"warning: {repository.instances} Python model instances end one after the other, about a second "
            f"each; with --exit-timeout {args.exit_timeout} a stop may end with status 5"
        )
    if args.dry_run:
        described = launch.describe_launch(serve_request.on([port for _, port in serve_request.ports]))
        console.print_result(described, launch.format_launch(described))
        return 0
    _check_serve_request(serve_request)
    numbers = ports.reserve_ports(args.host, serve_request.ports) if args.worker is None else []
    if args.check:
        console.print_result(
            {
                "repository": str(repository.directory),
                "runtime": server.runtime,
                "tritonserver": server.version,
                "ranks": repository.ranks,
                "ports": numbers,
                "ok": True,
                "warning": (unverified := manifest.explain_unverified(repository.manifest)),
            },
            f"{repository.manifest.name}: repository, runtime {server.runtime} "
            f"(tritonserver {server.version}), Python, GPU, open files, shared memory, ports "
            f"{', '.join(map(str, numbers))}: fine" + (f"; warning: {unverified}" if unverified else ""),
        )
        return 0
    if args.worker is not None:
        from enginix.serve.worker import wait_as_worker

        return wait_as_worker(args.ready_file)
    from enginix.cli.serving.serve import start

    return start.serve_repository(args, serve_request.on(numbers), repository)


def _check_serve_request(serve_request: ServeRequest) -> None:
    from enginix import manifest
    from enginix.kinds.registry import DEFAULT_KIND, find_start_module
    from enginix.runtime.sandbox import check_namespaces
    from enginix.serve import preflight, tritonserver

    repository, server = serve_request.repository, serve_request.plan.server
    preflight.check_backend(repository, server)
    preflight.check_open_files()
    if server.rootfs is None:
        python, described = serve_request.plan.python, repository.manifest
        tritonserver.check_python(python, server, described.kind or DEFAULT_KIND)
        if (start := find_start_module(described.kind)) is not None:
            console.print_notes(start.check_environment(python, repository.directory, described))
        # An image's /dev/shm is a file system of its own.
        preflight.check_shared_memory(repository.instances)
    else:
        check_namespaces()
    console.print_notes([manifest.explain_ungated(repository.manifest)])
    plan = serve_request.plan
    console.print_notes(
        preflight.check_gpus(repository, serve_request.driver, plan.gpus, serve_request.local_ranks)
    )
