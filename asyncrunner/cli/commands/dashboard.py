"""The command ``dashboard``: serve the pages that show and steer batches in a browser."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.util import find_spec
from typing import Annotated, Final

from asyncrunner.cli.command import Argument, Db, Option, command, env
from asyncrunner.cli.completers import files
from asyncrunner.cli.session import print_lines, print_note, with_inspection
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.validation import checked_count

_PACKAGES: Final = ("starlette", "jinja2", "uvicorn")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_LAST_PORT: Final = 65_535


@command(examples=["dashboard jobs.db --open", "dashboard jobs.db --host 0.0.0.0 --allow-host jobs.example.com --read-only"])
def dashboard(
    stores: Annotated[
        list[str] | None,
        Argument("STORE", help="The SQLite files or postgresql:// URLs to show. [default: that of --db]", complete=files),
    ] = None,
    db: Db = DEFAULT_DB,
    host: Annotated[str, Option(envvar=env("host"), help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(envvar=env("port"), help="The port to listen on; 0: any free one.")] = 8585,
    allow_host: Annotated[
        list[str] | None,
        Option(
            "--allow-host",
            envvar=env("allow_host"),
            help="A name under which browsers reach the dashboard, beside those of this machine. May be repeated.",
        ),
    ] = None,
    read_only: Annotated[
        bool, Option("--read-only", envvar=env("read_only"), help="Only show: no page can change anything.")
    ] = False,
    label: Annotated[
        str | None, Option(envvar=env("label"), help='A word for the head of each page, such as "production".')
    ] = None,
    user_header: Annotated[
        str | None,
        Option(envvar=env("user_header"), help="The header in which a proxy sends the user's name, for the log of actions."),
    ] = None,
    root_path: Annotated[
        str | None, Option(envvar=env("root_path"), help="The prefix that a proxy leaves in paths, such as /jobs.")
    ] = None,
    open: Annotated[bool, Option("--open", envvar=env("open"), help="Open it in a browser.")] = False,  # noqa: A002 - the option
) -> None:
    """Show and steer batches in a browser: progress, causes of failure, workers; retry, cancel, pause.

    Prints a link with a token, which is random unless ASYNCRUNNER_DASHBOARD_TOKEN has one. Only this machine can reach the
    dashboard; for others, give --host and --allow-host, and put a proxy with TLS in front of it. Each action is logged on
    stderr. Needs the extra: pip install "asyncrunner[dashboard]". Ctrl-C or SIGTERM ends it. Exit code 0: ended, 2: wrong
    usage, or the store cannot be read.
    """
    if any(find_spec(name) is None for name in _PACKAGES):
        raise ConfigurationError('the dashboard needs starlette, jinja2 and uvicorn: pip install "asyncrunner[dashboard]"')
    import threading
    import webbrowser

    from asyncrunner.dashboard import Dashboard
    from asyncrunner.dashboard import dashboard as dashboard_of
    from asyncrunner.dashboard.app import TOKEN_VARIABLE, random_token
    from asyncrunner.dashboard.serve import application, link_of, listen, log_actions, serve

    checked_count("--port", port, at_least=0, at_most=_LAST_PORT)
    if host not in _LOOPBACK and not allow_host:
        raise ConfigurationError(
            f"--host {safe_text(host)} lets other machines in: give the name under which they reach this one with --allow-host"
        )
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise ConfigurationError(f"--root-path {safe_text(root_path)}: start it with a slash and end it without one, as in /jobs")
    locations = list(dict.fromkeys(stores or [db]))
    for location in locations:
        with_inspection(location, lambda inspection: inspection.batches())  # an error now is better than an empty page
    token = None if TOKEN_VARIABLE in os.environ else random_token()
    made: list[tuple[str, Dashboard]] = []
    for location in locations:
        each = dashboard_of(
            location, token=token, hosts=allow_host or (), read_only=read_only, label=label, user_header=user_header
        )
        token = each.token
        made.append((location, each))
    with listen(host, port) as server:
        link = link_of(server, token)

        def announce() -> None:
            print_lines([link])
            sys.stdout.flush()
            print_note("Open this link in a browser. Ctrl-C ends the dashboard; batches and workers continue without it.")
            if open:  # a browser in a terminal would hold the server up
                threading.Thread(target=webbrowser.open, args=[link], daemon=True).start()

        log_actions()
        app = application(made, root_path or "")
        asyncio.run(serve(app, server, [each for _, each in made], announce))
