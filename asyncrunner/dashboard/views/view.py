"""What a page is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads


class View(NamedTuple):
    """The values of a page for its templates. ``title``: for the window. ``template``: its name without the suffix.

    ``now``: the time of the store, to which times are relative.
    """

    template: str
    title: str
    now: str
    values: Mapping[str, Any]


ViewFunction: TypeAlias = Callable[[Reads, Fields], Awaitable[View]]
"""A function that reads what a page shows. It raises AsyncRunnerError, for example BatchNotFound."""
