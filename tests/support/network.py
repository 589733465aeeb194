"""Machines that are network namespaces on a bridge of this machine, so that a test can cut the network of one.

It needs Linux, root and the program ``ip``. This machine is one of the network's: a server on ``Network.address`` is reached from
all of them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final

_SUBNETS: Final = range(1, 255)


class Machine:
    """A machine of a network, with processes and an address of its own."""

    def __init__(self, name: str, address: str, cable: str) -> None:
        self.name = name
        self.address = address
        self._cable = cable
        self._processes: list[subprocess.Popen[Any]] = []

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on the machine; the options are those of Popen. The process is killed at the end of the network."""
        process: subprocess.Popen[Any] = subprocess.Popen(["ip", "netns", "exec", self.name, *command], **options)
        self._processes.append(process)
        return process

    def disconnect(self) -> None:
        """Pull the cable: packets are dropped in both directions, and neither side is notified."""
        _ip("link", "set", self._cable, "down")

    def connect(self) -> None:
        """Plug the cable in; TCP delivers what it still has.

        For half a second the other side may still count the machine as unreachable and reset a new connection.
        """
        _ip("link", "set", self._cable, "up")

    def kill(self) -> None:
        """Kill every process that was started on the machine. After ``disconnect``, this is a machine without power."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def remove(self) -> None:
        """Delete what the kernel has of the machine."""
        # The cable first: the kernel deletes it some time after the namespace, and a test may look for it.
        for arguments in (["link", "del", self._cable], ["netns", "del", self.name]):
            with suppress(subprocess.CalledProcessError):
                _ip(*arguments)


class Network:
    """A bridge with two machines, as a context manager."""

    def __init__(self, machines: int = 2) -> None:
        self._count = machines
        self.machines: list[Machine] = []
        self._bridge = f"ar{secrets.token_hex(4)}"
        self._subnet = ""

    def __enter__(self) -> Network:
        try:
            self._create()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.kill()
            machine.remove()
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._bridge)

    @property
    def address(self) -> str:
        """The address of this machine in the network, on which a server must listen."""
        return f"{self._subnet}.1"

    def _create(self) -> None:
        used = _ip("-4", "addr", "show")
        number = next(number for number in _shuffled(_SUBNETS) if f" 10.77.{number}." not in used)
        self._subnet = f"10.77.{number}"
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for index in range(self._count):
            name, cable = f"{self._bridge}-{index}", f"{self._bridge}c{index}"
            machine = Machine(name, f"{self._subnet}.{index + 2}", cable)
            _ip("netns", "add", name)
            self.machines.append(machine)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", cable, "master", self._bridge)
            _ip("link", "set", cable, "up")
            _ip("-n", name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")


@cache
def missing() -> str | None:
    """Return why no network can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no program ip: install the package iproute2"
    try:
        with Network(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _shuffled(numbers: range) -> list[int]:
    return sorted(numbers, key=lambda _: secrets.token_hex(4))
