"""Run the command line as a program: report an error without a traceback, and exit with the command's exit code."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from typing import Final, NoReturn

import click

from asyncrunner.cli.app import app
from asyncrunner.cli.command import COMPLETE_VARIABLE, EXIT_INTERRUPTED, EXIT_USAGE
from asyncrunner.cli.process.stdout import closed_pipe_code, discard_stdout, flush_stdout, lost_output_message
from asyncrunner.cli.process.streams import make_stderr_lossy, open_closed_streams
from asyncrunner.errors import AsyncRunnerError
from asyncrunner.text.escaping import safe_text

_EXIT_TIMEOUT_SECONDS: Final = 1.0


def main() -> NoReturn:
    """Run the command line and exit with its exit code.

    0: success. 1: some items failed, or the command found a problem. 2: wrong usage or configuration, or output that
    cannot be written. 130: interrupted. 141: stdout is a closed pipe.
    """
    code = 0
    open_closed_streams()
    make_stderr_lossy()
    stdout = sys.stdout
    if type(stdout) is io.TextIOWrapper:
        stdout.reconfigure(errors="backslashreplace")  # escape characters that an old locale cannot encode
    try:
        code = _run_command()
        flush_stdout()
    except BrokenPipeError:
        discard_stdout()
        code = closed_pipe_code(*sys.argv[1:2])
    except OSError as error:
        if error.filename is not None:
            raise  # an error of another file than stdout
        discard_stdout()
        _print_error(lost_output_message(error, *sys.argv[1:2]))
        code = EXIT_USAGE
    _exit(code)


def _run_command() -> int:
    """Run the command and return its exit code. Raises OSError if its output cannot be written."""
    if os.environ.get(COMPLETE_VARIABLE):
        from asyncrunner.cli.completion import complete

        return complete(app)
    try:
        with app.make_context("asyncrunner", sys.argv[1:]) as context:
            app.invoke(context)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except AsyncRunnerError as error:
        _print_error(error)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _exit(code: int) -> NoReturn:
    """Exit within 1 s, also if the thread of a `def` handler hangs; a thread cannot be stopped."""
    deadline = time.monotonic() + _EXIT_TIMEOUT_SECONDS
    try:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    _exit_immediately(code)
    except KeyboardInterrupt:  # a second Ctrl-C
        _exit_immediately(code)
    sys.exit(code)


def _exit_immediately(code: int) -> NoReturn:
    sys.stderr.flush()
    if sys.stdout is not None:
        sys.stdout.flush()
    os._exit(code)


def _print_error(error: object) -> None:
    print("Error:", "\n".join(safe_text(line, limit=2000) for line in str(error).splitlines()), file=sys.stderr)
