"""Hosts of a network: namespaces with an interface each, joined by a bridge in a namespace of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_NET = 0x40000000


class Hosts:
    """Hosts named `names`, with the addresses 10.77.0.1, 10.77.0.2, ... in that order. Needs root."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._prefix = f"vlac{os.getpid()}"

    def address(self, name: str) -> str:
        return f"10.77.0.{self._names.index(name) + 1}"

    def command(self, name: str) -> tuple[str, ...]:
        """What stands before a command to run it on a host."""
        return ("ip", "netns", "exec", self._space(name))

    def link(self, name: str, state: str) -> None:
        """Pulls a host's cable ("down") or plugs it in again ("up")."""
        _ip("-n", self._space(name), "link", "set", "eth0", state)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Sockets that this thread makes are of that host; they stay so."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{self._space(name)}") as there:
            if libc.setns(there.fileno(), _NEW_NET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(before.fileno(), _NEW_NET)

    def __enter__(self) -> Hosts:
        switch = self._space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for name in self._names:
            space, port = self._space(name), f"to-{name}"
            _ip("netns", "add", space)
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self._names, "switch"):
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False)

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
