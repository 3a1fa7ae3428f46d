"""A rollout under load, as a manifest of mkKubernetes says it: kubernetes_rollout.py FILE

Servers are real (`enginix serve` with the container's arguments); clients ask all the time, each time on a
new connection. Stand-ins: a kubelet that does what the Pod's fields say, and a Service that forgets an
endpoint LATE seconds after its Pod was told to end, as nodes of a cluster do. Fails if any request is lost
in two replacements, or if none is lost in a third whose Pod has no hook that drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from enginix.errors import MachineError
from enginix.serve.client import TritonClient

# Before this file's own folder, which has an environments.py too.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "faults")]
from setting import Setting  # noqa: E402

LATE = 2.0
CLIENTS = 4
PAUSE_SECONDS = 0.5


class ServiceStandIn:
    """Passes each new connection on to one of the endpoints."""

    def __init__(self) -> None:
        self.endpoints: list[int] = []
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        listening = asyncio.start_server(self._connected, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(listening, self.loop).result()
        self.port = server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            port = random.choice(self.endpoints)
            inner = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(self._copy(reader, inner[1]), self._copy(inner[0], writer))
        writer.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


class Pod:
    """A server that is started and ended as the manifest says."""

    def __init__(self, setting: Setting, spec: dict[str, Any], service: ServiceStandIn) -> None:
        (container,) = spec["containers"]
        self.drain = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.grace = spec["terminationGracePeriodSeconds"]
        self.service = service
        self.process = subprocess.Popen(
            setting.words(*container["args"]),
            env=setting.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        assert "httpPort" in ready, ready
        self.port = ready["httpPort"]
        service.endpoints.append(self.port)

    def end(self) -> int:
        """Ends it as a kubelet does, while the Service hears of it late; returns its exit status."""
        begun = time.monotonic()
        threading.Timer(LATE, self.service.endpoints.remove, [self.port]).start()
        time.sleep(self.drain)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.grace - (time.monotonic() - begun))
        finally:
            self.process.kill()


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, port: int) -> None:
        self.answered, self.lost = 0, []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port, n)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, port: int, number: int) -> None:
        client = TritonClient("127.0.0.1", port, timeout=60)
        body = {"text_input": "Permission is hereby granted", "end_id": -1}
        while not self._stopped.is_set():
            try:
                if number % 2:
                    client.generate("ensemble", {**body, "max_tokens": 4})
                else:
                    pieces = list(client.stream("ensemble", {**body, "max_tokens": 32, "stream": True}))
                    assert pieces[-1]["finish_reason"] == "length", "a stream without its end"
                self.answered += 1
            except (MachineError, AssertionError) as e:
                self.lost.append(str(e))
            time.sleep(PAUSE_SECONDS)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def main(file: Path) -> None:
    spec = json.loads(file.read_text())["items"][0]["spec"]["template"]["spec"]
    service = ServiceStandIn()
    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(Path(directory))
        pods = [Pod(setting, spec, service)]

        def replace_pods(count: int) -> Load:
            load = Load(service.port)
            try:
                for _ in range(count):
                    pods.append(Pod(setting, spec, service))
                    status = pods[-2].end()
                    assert status == 0, f"the old server ended with {status}"
                    time.sleep(LATE)
            finally:
                load.stop()
            return load

        try:
            load = replace_pods(2)
            lost = sorted(set(load.lost))[:3]
            print(f"{load.answered} answered, {len(load.lost)} lost in 2 replacements: {lost}")
            assert load.answered > 50 and not load.lost
            # A check that cannot fail would prove nothing.
            pods[-1].drain = 0
            load = replace_pods(1)
            lost = sorted(set(load.lost))[:3]
            print(f"{load.answered} answered, {len(load.lost)} lost without the drain: {lost}")
            assert load.lost
        finally:
            for pod in pods:
                pod.process.terminate()
                pod.process.wait(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
