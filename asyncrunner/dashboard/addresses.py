"""Find out which page a request is for, under any prefix, and the address at which its relative links work.

Frameworks and proxies differ in what they do with a prefix: some leave it in the path and name it in ``root_path``, some cut
it off, and some add a slash to the rest. No page depends on that: all links are relative to the address in the browser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

FIRST_PAGE: Final = "/"


def page_path(scope: Mapping[str, Any]) -> str:
    """Return the path of the page inside the dashboard, with a slash at its start and none at its end, as in ``/batch``."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return f"/{path.strip('/')}"


def other_address(scope: Mapping[str, Any]) -> str | None:
    """Return the relative address of the page if its links do not work at the requested one, else None.

    The first page needs a slash at the end of its address, and the others need none.
    """
    path = _requested_path(scope)
    is_first = page_path(scope) == FIRST_PAGE
    if path.endswith("/") is is_first:
        return None
    return own_address(scope) if is_first else f"../{_last(path.rstrip('/'))}"


def own_address(scope: Mapping[str, Any]) -> str:
    """Return the address of the page, relative to the requested one, without its query."""
    last = _last(_requested_path(scope))
    return f"./{last}/" if last and page_path(scope) == FIRST_PAGE else f"./{last}"


def _requested_path(scope: Mapping[str, Any]) -> str:
    """Return the path as the server received it, still percent-encoded."""
    raw = scope.get("raw_path")
    if raw:
        return bytes(raw).decode("latin-1").partition("?")[0]  # some servers leave the query in it
    return quote(f"{scope.get('root_path', '')}{scope['path']}")


def _last(path: str) -> str:
    return path.rpartition("/")[2]
