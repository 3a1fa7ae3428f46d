"""The gateway's process: LiteLLM's proxy behind the auth middleware, with all telemetry off.

Executed by ``enginix gateway`` with the Python that has litellm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from enginix import console, ports
from enginix.errors import MachineError
from enginix.gateway import litellm_config, spec
from enginix.gateway.backends import Backends
from enginix.gateway.keys import Keys, read_key
from enginix.gateway.launch import GatewayOptions
from enginix.notify import notify_systemd
from enginix.optional_libraries import pause_garbage_collector

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
    """Serve until SIGINT or SIGTERM; running answers end first."""
    options = GatewayOptions.parse(sys.argv[1])
    gateway_spec = spec.read_gateway_spec(Path(options.spec))
    keys = Keys(gateway_spec)
    with contextlib.ExitStack() as stack:
        waiting = contextlib.ExitStack()
        stack.enter_context(waiting)
        if options.is_watched:
            waiting.enter_context(console.show_waiting("waiting for LiteLLM and the servers"))
        begun = time.monotonic()
        state = stack.enter_context(_enter_private_directory())
        try:
            with pause_garbage_collector():
                app = _configure_litellm(gateway_spec, state)
        except Exception as e:
            if isinstance(e, ImportError) and e.name:
                raise  # main.py names the missing library
            console.print_message(f"error: LiteLLM does not start: {type(e).__name__}: {e}")
            return 5

        def report_ready(port: int) -> None:
            waiting.close()
            host = f"[{options.host}]" if ":" in options.host else options.host
            console.print_message(
                f"{gateway_spec.name} answers at http://{host}:{port}/v1 "
                f"for {', '.join(gateway_spec.models)} after {time.monotonic() - begun:.1f} s"
            )
            if options.is_watched:
                body = json.dumps({"model": next(iter(gateway_spec.models)), "prompt": "Once upon a time"})
                key = " -H 'Authorization: Bearer KEY'" if keys.asked else ""
                console.print_message(
                    f"try: curl http://{host}:{port}/v1/completions "
                    f"-H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
                )

        try:
            with ports.open_listener(options.host, options.port, "--port") as listener:
                serving = _serve_gateway(options, gateway_spec, keys, app, report_ready, listener)
                return asyncio.run(serving)
        except MachineError as e:
            return console.report_error(e)


@contextlib.contextmanager
def _enter_private_directory() -> Iterator[Path]:
    # Until uvicorn handles signals, they end the start, so that the directory goes.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="enginix-gateway-") as name:
        os.environ["HOME"] = os.environ["TMPDIR"] = name
        os.chdir(name)
        yield Path(name)


def _configure_litellm(gateway_spec: spec.GatewaySpec, state: Path) -> Any:
    """Return LiteLLM's application, configured."""
    os.environ.update(ENVIRONMENT)
    # LiteLLM does not start without a master key; the auth middleware blocks the routes that it opens.
    os.environ["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_hex(32)}"
    for servers in gateway_spec.models.values():
        for server in servers:
            if server.key_file:
                os.environ[litellm_config.name_key_variable(server.key_file)] = read_key(server.key_file)
    path = state / "config.yaml"
    # JSON is YAML.
    path.write_text(
        json.dumps(
            litellm_config.render_litellm_config(gateway_spec, litellm_config.name_key_variable), indent=1
        )
    )
    (state / f"{litellm_config.MODULE}.py").write_text(litellm_config.MODULE_SOURCE)
    os.environ["CONFIG_FILE_PATH"] = str(path)
    # LiteLLM prints banners to standard output; messages go to standard error.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    import litellm
    from litellm.llms.openai.common_utils import BaseOpenAILLM
    from litellm.proxy.proxy_server import app

    from enginix.gateway.handler import handler, refuse_unfinished_streams
    from enginix.gateway.recorded_answer import record_answers

    refuse_unfinished_streams()
    # The session that LiteLLM would make for each server with OpenAI's interface.
    litellm.aclient_session = BaseOpenAILLM._get_async_http_client()
    record_answers(litellm.aclient_session)
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "uvicorn.error", "asyncio"):
        # The auth middleware logs each failed request in one line; tracebacks hold texts of clients.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    handler.silence = float(gateway_spec.limits.silence_seconds)
    return app


async def _serve_gateway(
    options: GatewayOptions,
    gateway_spec: spec.GatewaySpec,
    keys: Keys,
    app: Any,
    report_ready: Callable[[int], None],
    listener: socket.socket,
) -> int:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from enginix.gateway.auth_middleware import AuthMiddleware
    from enginix.gateway.connections import limited_protocol, raise_file_limit

    backends = Backends(gateway_spec, read_key, console.print_message)
    port = int(listener.getsockname()[1])
    auth_middleware = AuthMiddleware(
        app, gateway_spec, keys, backends.state, console.print_message, backends.answers
    )
    server = uvicorn.Server(
        uvicorn.Config(
            auth_middleware,
            # uvicorn's other one, httptools, takes headers and addresses without end.
            http=limited_protocol(H11Protocol, raise_file_limit()),
            # A connection that becomes a websocket leaves the limits' protocol without its end.
            ws="none",
            # Connections that are not accepted yet, as many as the system allows.
            backlog=4096,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=options.exit_timeout,
            lifespan="on",
        )
    )
    # uvicorn raises the signal that stopped it again at its end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    tending = asyncio.ensure_future(
        _watch_backends(server, backends, app, options, gateway_spec, lambda: report_ready(port))
    )
    try:
        await server.serve(sockets=[listener])
    except SystemExit:
        # Newer versions of uvicorn end the process if the application does not start.
        if server.started:
            raise
    finally:
        notify_systemd("STOPPING=1")
        tending.cancel()
    if not server.started:
        reason = auth_middleware.start_failure or "it gives no reason"
        console.print_message(f"error: LiteLLM does not start: {reason}")
        return 5
    if tending.done() and not tending.cancelled() and tending.exception():
        console.print_message(f"error: {tending.exception()}")
        return 5
    console.print_message("stopped")
    return 0


async def _watch_backends(
    server: Any,
    backends: Backends,
    app: Any,
    options: GatewayOptions,
    gateway_spec: spec.GatewaySpec,
    report_ready: Callable[[], None],
) -> None:
    """Report readiness, then report servers that stop or resume answering."""
    while not server.started:
        await asyncio.sleep(0.05)
    try:
        await asyncio.wait_for(_await_ready(backends, app, gateway_spec), options.start_timeout)
    except asyncio.TimeoutError as e:
        server.should_exit = True
        silent = ", ".join(backends.silent()) or "LiteLLM"
        raise TimeoutError(f"no answer after {options.start_timeout:.0f} s from {silent}") from e
    notify_systemd("READY=1")
    report_ready()
    await backends.watch()


async def _await_ready(backends: Backends, app: Any, gateway_spec: spec.GatewaySpec) -> None:
    """Wait until every server has answered, and one answer has passed LiteLLM, whose first takes seconds."""
    from enginix.gateway.answering import Answering, CheckedRequest
    from enginix.gateway.balancer import Balancer
    from enginix.gateway.keys import ANYONE
    from enginix.gateway.request import RequestRejected

    await backends.await_answers()
    model = next((m for m, servers in gateway_spec.models.items() if servers[0].kind == "triton"), None)
    if model is None:
        return
    body = {"model": model, "prompt": "A", "max_tokens": 1}
    question = CheckedRequest.compose(
        "/v1/completions", body, model, "start", is_triton=True, limits=gateway_spec.limits
    )
    while True:
        with contextlib.suppress(RequestRejected):
            await Answering(app, Balancer(gateway_spec, backends.answers), question, ANYONE, 1).whole()
            return
        await asyncio.sleep(0.5)
