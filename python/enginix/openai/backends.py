"""Whether the servers behind the gateway answer: at the start by an answer of each, later by their health."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx

from enginix.openai import triton
from enginix.openai.spec import Server, Spec

_POLL_SECONDS = 0.5
_WATCH_SECONDS = 5.0
_PROBE = {"text_input": "A", "max_tokens": 1, "end_id": -1}


class Backends:
    """The servers of a gateway, and which of them answer.

    Args:
        key: the key of a server's file.
    """

    def __init__(self, spec: Spec, key: Callable[[str], str]) -> None:
        self._servers = {s: False for servers in spec.models.values() for s in servers}
        self._spec, self._key = spec, key
        self._answered = False

    def state(self) -> tuple[bool, dict[str, Any]]:
        """Ready (every server has answered once, and now one of each model is there), and each model's."""
        counts = {
            name: {"servers": len(servers), "answering": sum(self._servers[s] for s in servers)}
            for name, servers in self._spec.models.items()
        }
        return self._answered and all(c["answering"] for c in counts.values()), counts

    def silent(self) -> list[str]:
        """Addresses that have not answered, for the operator."""
        return sorted({s.url for s, answers in self._servers.items() if not answers})

    async def await_answers(self) -> None:
        """Returns when every server has answered once."""
        async with triton.new_client(60) as client:
            await asyncio.gather(*(self._await(client, s) for s in self._servers))
        self._answered = True

    async def watch(self, changed: Callable[[str], None]) -> None:
        """Looks after the servers until cancelled; ``changed`` gets a line when one goes or comes back."""
        async with triton.new_client(5) as client:
            while True:
                await asyncio.sleep(_WATCH_SECONDS)
                for server, before in self._servers.items():
                    now = await self._healthy(client, server)
                    self._servers[server] = now
                    if now != before:
                        changed(f"{server.url} {'answers again' if now else 'does not answer'}")

    async def _await(self, client: httpx.AsyncClient, server: Server) -> None:
        while not await self._answers(client, server):
            await asyncio.sleep(_POLL_SECONDS)
        self._servers[server] = True

    async def _answers(self, client: httpx.AsyncClient, server: Server) -> bool:
        if server.kind == "openai":
            return await self._healthy(client, server)
        with contextlib.suppress(triton.BackendError):
            async for _ in triton.stream(client, server.url, server.model, _PROBE):
                pass
            return True
        return False

    async def _healthy(self, client: httpx.AsyncClient, server: Server) -> bool:
        if server.kind == "triton":
            url, headers = f"{server.url.rstrip('/')}/v2/health/ready", {}
        else:
            url = f"{server.url.rstrip('/')}/models"
            headers = {"Authorization": f"Bearer {self._key(server.key_file)}"} if server.key_file else {}
        with contextlib.suppress(httpx.HTTPError):
            return (await client.get(url, headers=headers)).status_code == 200
        return False
