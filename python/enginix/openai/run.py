"""The gateway's process: LiteLLM's proxy behind the gate, started with nothing that phones home.

Executed by ``enginix gateway`` with the Python that has litellm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginix import console
from enginix.openai import config, spec
from enginix.openai.backends import Backends
from enginix.openai.keys import Keys, read_key
from enginix.openai.launch import Options
from enginix.serve.notify import notify

# LiteLLM reads them while it is imported.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else its price list is downloaded
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",  # else it reads .env files
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "CRITICAL",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main() -> int:
    """Serves until SIGINT or SIGTERM; running answers end first."""
    options = Options.parse(sys.argv[1])
    wanted = spec.read(Path(options.spec))
    keys = Keys(wanted)
    with _directory() as state:
        try:
            app = _litellm(wanted, state)
        except Exception as e:
            if isinstance(e, ImportError) and e.name:
                raise  # main.py names the library
            console.say(f"error: LiteLLM does not start: {type(e).__name__}: {e}")
            return 5
        return asyncio.run(_serve(options, wanted, keys, app))


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="enginix-gateway-") as name:
        os.environ["HOME"] = os.environ["TMPDIR"] = name
        os.chdir(name)
        yield Path(name)


def _litellm(wanted: spec.Spec, state: Path) -> Any:
    """LiteLLM's application, configured."""
    os.environ.update(ENVIRONMENT)
    # LiteLLM does not start without one; the gate lets none of the routes through that it opens.
    os.environ["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_hex(32)}"
    for servers in wanted.models.values():
        for server in servers:
            if server.key_file:
                os.environ[config.variable(server.key_file)] = read_key(server.key_file)
    path = state / "config.yaml"
    # JSON is YAML.
    path.write_text(json.dumps(config.render(wanted, config.variable), indent=1))
    (state / f"{config.MODULE}.py").write_text(config.MODULE_SOURCE)
    os.environ["CONFIG_FILE_PATH"] = str(path)
    # Banners and prints; what is worth saying goes to standard error.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    import litellm
    from litellm.proxy.proxy_server import app

    from enginix.openai.handler import handler

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "uvicorn.error", "asyncio"):
        # Each failed request is one line of the gate; tracebacks hold what clients sent.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    handler.silence = float(wanted.limits.silence_seconds)
    return app


async def _serve(options: Options, wanted: spec.Spec, keys: Keys, app: Any) -> int:
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from enginix.openai.connections import limited_protocol, raise_file_limit
    from enginix.openai.gate import Gate

    backends = Backends(wanted, read_key, console.say)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    port = int(listener.getsockname()[1])
    gate = Gate(app, wanted, keys, backends.state, console.say, backends.answers)
    server = uvicorn.Server(
        uvicorn.Config(
            gate,
            http=limited_protocol(AutoHTTPProtocol, raise_file_limit()),
            # Connections that nobody has accepted yet, as many as the system allows.
            backlog=4096,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=options.exit_timeout,
            lifespan="on",
        )
    )
    # uvicorn raises the signal that ended it once more at its end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    tending = asyncio.ensure_future(_tend(server, backends, app, options, wanted, port))
    try:
        await server.serve(sockets=[listener])
    except SystemExit:
        # Newer versions of uvicorn end the process where the application does not start.
        if server.started:
            raise
    finally:
        notify("STOPPING=1")
        tending.cancel()
    if not server.started:
        console.say(f"error: LiteLLM does not start: {gate.start_failure or 'it gives no reason'}")
        return 5
    if tending.done() and not tending.cancelled() and tending.exception():
        console.say(f"error: {tending.exception()}")
        return 5
    console.say("stopped")
    return 0


async def _tend(
    server: Any, backends: Backends, app: Any, options: Options, wanted: spec.Spec, port: int
) -> None:
    """Says when it is ready, and who of the servers goes and comes back."""
    begin = time.monotonic()
    while not server.started:
        await asyncio.sleep(0.05)
    try:
        await asyncio.wait_for(_await_ready(backends, app, wanted), options.start_timeout)
    except asyncio.TimeoutError as e:
        server.should_exit = True
        silent = ", ".join(backends.silent()) or "LiteLLM"
        raise TimeoutError(f"no answer after {options.start_timeout:.0f} s from {silent}") from e
    notify("READY=1")
    took = time.monotonic() - begin
    host = f"[{options.host}]" if ":" in options.host else options.host
    models = ", ".join(wanted.models)
    console.say(f"{wanted.name} answers at http://{host}:{port}/v1 for {models} after {took:.1f} s")
    await backends.watch()


async def _await_ready(backends: Backends, app: Any, wanted: spec.Spec) -> None:
    """Every server has answered, and one answer has gone the whole way: LiteLLM's first takes seconds."""
    from enginix.openai.answering import Answering, Question
    from enginix.openai.balancer import Balancer
    from enginix.openai.keys import ANYONE
    from enginix.openai.request import Refused

    await backends.await_answers()
    model = next((m for m, servers in wanted.models.items() if servers[0].kind == "triton"), None)
    if model is None:
        return
    body = {"model": model, "prompt": "A", "max_tokens": 1}
    question = Question.compose("/v1/completions", body, model, "start", is_triton=True, limits=wanted.limits)
    while True:
        with contextlib.suppress(Refused):
            await Answering(app, Balancer(wanted, backends.answers), question, ANYONE, 1).whole()
            return
        await asyncio.sleep(0.5)
