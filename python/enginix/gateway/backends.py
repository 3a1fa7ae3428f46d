"""Availability of the servers behind the gateway: by an answer of each at start, by their health later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx

from enginix.gateway import triton
from enginix.gateway.spec import BackendServer, GatewaySpec

_POLL_SECONDS = 0.5
_WATCH_SECONDS = 5.0
# Checks without an answer in time, one after the other, after which a server counts as silent.
_TIMEOUTS = 2
_PROBE = {"text_input": "A", "max_tokens": 1, "end_id": -1}


class Backends:
    """The servers of a gateway, and their availability.

    Args:
        key: returns the key in a server's key file.
        say: receives a line when a server stops or resumes answering, or serves another model.
    """

    def __init__(self, spec: GatewaySpec, key: Callable[[str], str], say: Callable[[str], None]) -> None:
        self._say = say
        self._servers = {s: False for servers in spec.models.values() for s in servers}
        self._spec, self._key = spec, key
        self._answered = False

    def state(self) -> tuple[bool, dict[str, Any]]:
        """Return whether each server has answered once and each model has one now; and the models' counts."""
        counts = {
            name: {"servers": len(servers), "answering": sum(self._servers[s] for s in servers)}
            for name, servers in self._spec.models.items()
        }
        return self._answered and all(c["answering"] for c in counts.values()), counts

    def silent(self) -> list[str]:
        """Return the addresses of servers that have not answered, for the operator."""
        return sorted({s.url for s, answers in self._servers.items() if not answers})

    def answers(self, server: BackendServer) -> bool:
        """Tell whether a server answered at its last check."""
        return self._servers[server]

    async def await_answers(self) -> None:
        """Return when every server has answered once."""
        async with triton.new_client(60) as client:
            await asyncio.gather(*(self._await(client, s) for s in self._servers))
        self._answered = True

    async def watch(self) -> None:
        """Check the servers' health until cancelled."""
        async with triton.new_client(5) as client:
            while True:
                await asyncio.sleep(_WATCH_SECONDS)
                await asyncio.gather(*(self._check(client, server) for server in self._servers))

    async def _check(self, client: httpx.AsyncClient, server: BackendServer) -> None:
        """Ask a server for its health, and record a change."""
        now = await self._healthy(client, server)
        if now != self._servers[server]:
            self._servers[server] = now
            self._say(f"{server.url} {'answers again' if now else 'does not answer'}")

    async def _await(self, client: httpx.AsyncClient, server: BackendServer) -> None:
        while not await self._answers(client, server):
            await asyncio.sleep(_POLL_SECONDS)
        if server.kind == "openai":
            names = await self._names(client, server)
            if names and server.model not in names:
                served = ", ".join(sorted(names))
                self._say(f"warning: {server.url} serves {served}, but the gateway asks for {server.model}")
        self._servers[server] = True

    async def _answers(self, client: httpx.AsyncClient, server: BackendServer) -> bool:
        if server.kind == "openai":
            return await self._healthy(client, server)
        with contextlib.suppress(triton.BackendError):
            async for _ in triton.stream_pieces(client, server.url, server.model, _PROBE):
                pass
            return True
        return False

    async def _healthy(self, client: httpx.AsyncClient, server: BackendServer) -> bool:
        for _ in range(_TIMEOUTS):
            try:
                return (await self._get(client, server)).status_code == 200
            except httpx.TimeoutException:
                # This process may have been too busy to read the answer.
                continue
            except httpx.HTTPError:
                break
        return False

    async def _names(self, client: httpx.AsyncClient, server: BackendServer) -> list[str]:
        """Return the models that a server with OpenAI's interface lists; empty if it lists none."""
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            return [str(row["id"]) for row in (await self._get(client, server)).json()["data"]]
        return []

    async def _get(self, client: httpx.AsyncClient, server: BackendServer) -> httpx.Response:
        url = server.url.rstrip("/")
        if server.kind == "triton":
            return await client.get(f"{url}/v2/health/ready")
        key = self._key(server.key_file) if server.key_file else None
        return await client.get(f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {})
