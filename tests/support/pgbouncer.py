"""A PgBouncer for the tests: Debian's package ``pgbouncer``, with its configuration in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

from tests.support.postgres_server import ServerFailedError, as_unprivileged_user, ending_with_this_process, free_ports

MISSING: Final = "no pgbouncer: install the package pgbouncer"
"""The reason for which a test that needs it is skipped."""

_START_SECONDS: Final = 20.0


def program() -> str | None:
    """Return the path of the program, or None."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


class PgBouncer:
    """A pooler in front of the server at *dsn*, as a context manager. Root starts it as another user.

    *mode*: when a server's connection returns to the pool: at the end of a transaction, or of the client's session. *users*: names
    that may log in, without a password. *settings*: more settings by name.
    """

    def __init__(
        self,
        dsn: str,
        mode: Literal["transaction", "session"],
        *,
        users: tuple[str, ...] = ("postgres",),
        settings: dict[str, object] | None = None,
    ) -> None:
        self._server = urlsplit(dsn)
        self._mode = mode
        self._users = users
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)

    def __enter__(self) -> PgBouncer:
        self.folder = Path(tempfile.mkdtemp(prefix="asyncrunner-pgbouncer-"))
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, direct: str) -> str:
        """Return the URL of a server or a store with the pooler in place of the server's address."""
        parts = urlsplit(direct)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    def start(self) -> None:
        """Start the pooler, always on the same port, and wait until it accepts connections. Raises ServerFailedError."""
        path = program()
        if path is None:
            raise ServerFailedError(MISSING)
        as_user = as_unprivileged_user(self.folder)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": self.folder,
            "auth_type": "trust",
            "auth_file": self.folder / "users",
            "admin_users": self._users[0],
            "pool_mode": self._mode,
            **self._settings,
        }
        (self.folder / "users").write_text("".join(f'"{user}" ""\n' for user in self._users))
        (self.folder / "config").write_text(
            f"[databases]\n* = host={self._server.hostname} port={self._server.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*ending_with_this_process(), path, str(self.folder / "config")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **as_user,
            )  # fmt: skip
        give_up_at = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < give_up_at:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        self.stop()
        raise ServerFailedError(f"pgbouncer did not start:\n{self.log()[-2000:]}")

    def stop(self) -> None:
        """Stop the pooler: every connection through it is closed."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def log(self) -> str:
        """Return the pooler's messages."""
        return (self.folder / "log").read_text(errors="replace")
