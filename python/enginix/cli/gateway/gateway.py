"""Serves OpenAI's interface in front of Triton and other servers: LiteLLM, with keys, limits and routing.

  enginix gateway gateway.json
  enginix gateway gateway.json --check          checks everything, without starting
  enginix gateway gateway.json --dry-run        LiteLLM's configuration, command and environment

The description says which models there are and which servers answer for each (mkGateway writes one):

  {"version": 1, "name": "gateway", "keyFile": "/run/keys/operator",
   "models": {"tiny": [{"kind": "triton", "url": "http://127.0.0.1:8000", "model": "ensemble"}]},
   "clients": {"alice": {"keyFile": "/run/keys/alice", "models": ["tiny"], "requestsPerMinute": 60}}}

Keys are files with one key each, of mode 600; a relative path is the name of a systemd credential. Without
any key the gateway serves loopback only. It counts as ready when every server behind it has answered;
systemd is told then, and GET /health/ready says so. SIGTERM lets running answers end.

--python is an environment with litellm and its proxy (default: this one). Nothing phones home.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from enginix import console
from enginix.cli.option_shapes import add_flag, add_number, add_path, add_timeouts, fill_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "description", "FILE", "the gateway, as JSON (see above)")
    add_path(parser, "--python", "P", "python3 that has litellm ($ENGINIX_GATEWAY_PYTHON)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="IP", help="listen address (default: loopback)"
    )
    add_number(parser, "--port", "listen port (default: 4000; 0 takes a free one)", default=4000)
    start = "seconds within which every server behind must answer"
    add_timeouts(parser, start, "seconds for running answers to end at a stop")
    add_flag(parser, "--check", "check everything, start nothing")
    add_flag(parser, "--dry-run", "print configuration, command and environment, start nothing")


def run(args: argparse.Namespace) -> int:
    """Check everything, then replace this process by the gateway."""
    from enginix import ports
    from enginix.gateway import launch, litellm_config, spec
    from enginix.gateway.keys import Keys, read_key

    gateway_spec = spec.read_gateway_spec(args.description)
    ports.address_family(args.host)
    python = launch.find_gateway_python(args.python)
    spec_path = str(args.description.absolute())
    options = fill_options(launch.GatewayOptions, args, spec=spec_path, is_watched=console.is_watched())
    if args.dry_run:
        described = {
            "litellm": litellm_config.render_litellm_config(gateway_spec, litellm_config.name_key_variable),
            "command": launch.build_gateway_command(python, options),
            "environment": launch.build_gateway_environment(),
        }
        console.print_result(described, json.dumps(described, indent=2, ensure_ascii=False))
        return 0
    keys = Keys(gateway_spec)
    launch.check_host(args.host, has_keys=keys.asked)
    for servers in gateway_spec.models.values():
        for server in servers:
            if server.key_file:
                read_key(server.key_file)
    version = launch.require_litellm(python)
    [port] = ports.reserve_ports(args.host, [("--port", args.port)])
    if args.check:
        check_result = {"name": gateway_spec.name, "litellm": version, "port": port, "ok": True}
        console.print_result(
            check_result, f"{gateway_spec.name}: description, keys, litellm {version}, port {port}: fine"
        )
        return 0
    console.print_message(
        f"{gateway_spec.name}: litellm {version}, waiting for the servers of {', '.join(gateway_spec.models)}"
    )
    sys.stdout.flush()
    os.execve(python, launch.build_gateway_command(python, options), launch.build_gateway_environment())
