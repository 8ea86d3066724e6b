"""A TCP proxy before a PostgreSQL that can misbehave: freeze, reset, delay, refuse.

`Proxy` is what tests use. It runs this file as a process of its own, so that the proxy shares
neither the interpreter nor the descriptors and threads of the pool under test. Commands are JSON
lines on its standard input, each answered by a line on its standard output; it ends with the pipe.

The proxy knows nothing of the protocol that passes through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

MODES = ("forward", "freeze", "reset", "delay", "refuse")

_CHUNK = 65536
_BACKLOG = 512
# Seconds: how long a command may take, and between two attempts to have the port again.
_PATIENCE = 10.0
_POLL = 0.01
# Below the ports that outgoing connections get: a client that tries a port nobody listens on
# may else be connected to itself, or have taken the port when the proxy wants it again.
_PORTS = range(20000, 32000)


# ---- the tests' side


class Proxy:
    """A proxy between its `port` on `host` and a server; starts with the `with` block.

    *target*: where the server listens: (address, port), or the path of a Unix socket.
    *host*: the address to listen on.
    *prefix*: a command to run the process under, such as `["ip", "netns", "exec", "name"]`.

    A mode holds for the connections that there are and for new ones. One thread at a time may
    give commands.
    """

    def __init__(
        self,
        target: tuple[str, int] | str,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.port = 0
        self._target = target
        self._prefix = list(prefix)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Proxy:
        self._process = subprocess.Popen(
            [*self._prefix, sys.executable, "-I", __file__, self.host, json.dumps(self._target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self._hear()["port"]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._running
        self._process = None
        with process:  # closes the pipes, and waits
            pass

    # ---- what happens to the traffic

    def forward(self) -> None:
        """Pass everything on, what was held too."""
        self._ask("forward")

    def freeze(self) -> None:
        """Accept, and pass nothing on in either direction, the ends of connections neither."""
        self._ask("freeze")

    def reset(self) -> None:
        """Reset the connections that there are, and each new one as soon as it is accepted."""
        self._ask("reset")

    def delay(self, seconds: float) -> None:
        """Hold back whatever is sent, in either direction, for *seconds*."""
        self._ask("delay", seconds=seconds)

    def refuse(self) -> None:
        """Reset the connections that there are, and refuse new ones: nobody listens."""
        self._ask("refuse")

    def cut(self) -> None:
        """Reset the connections that there are; the mode stays what it is."""
        self._ask("cut")

    @property
    def accepted(self) -> int:
        """How many connections were accepted so far."""
        return int(self._ask("count")["accepted"])

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return int(self._ask("count")["open"])

    # ---- the pipe

    @property
    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the proxy does not run")
        return self._process

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        stdin = self._running.stdin
        assert stdin is not None
        stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        stdout = self._running.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with {self._running.wait(_PATIENCE)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# ---- the process


class _Relay:
    """The traffic of all connections, and the mode that governs it."""

    def __init__(self, host: str, target: list[Any] | str) -> None:
        self._host = host
        self._target = target
        self._port = 0
        self._mode = "forward"
        self._delay = 0.0
        self._flows = asyncio.Event()
        self._flows.set()
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._accepted = 0
        self._open = 0

    async def listen(self) -> int:
        """Listen, again on the same port after the first time."""
        while self._listener is None:
            port = self._port or secrets.choice(_PORTS)
            try:
                self._listener = await asyncio.start_server(
                    self._serve, self._host, port, backlog=_BACKLOG
                )
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                await asyncio.sleep(_POLL)
            else:
                self._port = port
        return self._port

    async def obey(self, do: str, seconds: float = 0.0) -> dict[str, Any]:
        """Carry out a command."""
        if do == "count":
            return {"accepted": self._accepted, "open": self._open}
        if do in MODES:
            self._mode = do
            self._delay = seconds
            if do == "freeze":
                self._flows.clear()
            else:
                self._flows.set()
        if do == "refuse":
            if self._listener is not None:
                self._listener.close()
                self._listener = None
        else:
            await self.listen()
        if do in ("reset", "refuse", "cut"):
            for writer in list(self._writers):
                _reset(writer)
        return {"done": do}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        self._open += 1
        self._writers.add(writer)
        try:
            if self._mode == "reset":
                _reset(writer)
                return
            await self._flows.wait()
            if isinstance(self._target, str):
                far_reader, far_writer = await asyncio.open_unix_connection(self._target)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            try:
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            finally:
                self._writers.discard(far_writer)
                far_writer.close()
        except OSError:
            _reset(writer)
        finally:
            self._open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(_CHUNK)
            await self._flows.wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            if not data:
                # PostgreSQL's protocol knows no half-closed connections.
                writer.close()
                return
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    peer: socket.socket | None = writer.get_extra_info("socket")
    if peer is not None and peer.family != socket.AF_UNIX and not writer.is_closing():
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _main(host: str, target: list[Any] | str) -> None:
    relay = _Relay(host, target)
    # What a connection failed with concerns its two ends.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    _say({"port": await relay.listen()})
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
    )
    while line := await stdin.readline():
        _say(await relay.obey(**json.loads(line)))


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2])))
