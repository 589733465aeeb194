"""Turn values into HTML. Every text is escaped twice: control and bidirectional characters as on a terminal, then HTML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from asyncrunner.dashboard.fields import JSON_FIELD
from asyncrunner.text.durations import duration_text, rate_text
from asyncrunner.text.escaping import counted, safe_text
from asyncrunner.text.timestamps import from_text, to_text

_MAX_LINES_CHARACTERS: Final = 300_000
_CLOCK_SLACK_SECONDS: Final = 10.0
_SPARK_HEIGHT: Final = 20
_MEDIA_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
"""By the end of a name; those of the machine may differ, and with ``nosniff`` a browser then refuses the file."""


class Asset(NamedTuple):
    """A file of the pages: its name with a hash of its content, its content and its media type."""

    name: str
    content: bytes
    media_type: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return the files that the pages load, by their names without the hash."""
    found: dict[str, Asset] = {}
    for file in files("asyncrunner.dashboard").joinpath("static").iterdir():
        stem, _, suffix = file.name.rpartition(".")
        if suffix not in _MEDIA_TYPES:
            continue
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        found[file.name] = Asset(f"{stem}.{digest}.{suffix}", content, _MEDIA_TYPES[suffix])
    return found


def lines(value: object) -> str:
    """Return a text of several lines for a block in which line breaks count; other control characters are escaped."""
    text = str(value)
    if len(text) > _MAX_LINES_CHARACTERS:
        text = f"{text[:_MAX_LINES_CHARACTERS]}\n..."
    return "\n".join(safe_text(line, limit=_MAX_LINES_CHARACTERS) for line in text.split("\n"))


def json_lines(value: Any) -> str:
    """Return a JSON value on several lines: keys in their stored order, whole numbers with all their digits."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        if len(text) > _MAX_LINES_CHARACTERS:
            text = json.dumps(value, ensure_ascii=False)  # deeply nested: most of it is the space before its lines
    except RecursionError:
        return "It is nested too deeply to be shown."
    return lines(text)


def moment(text: str | None, now: str) -> Markup:
    """Return a row's time relative to *now*, with the time in UTC as its title."""
    at, seen = from_text(text), from_text(now)
    if text is None or at is None or seen is None:
        return escape("-" if text is None else safe_text(text, limit=40))
    seconds = 0.0 if -_CLOCK_SLACK_SECONDS < seen - at < 0 else seen - at  # a page may join reads of two moments
    shown = "now" if abs(seconds) < 1 else f"{short(seconds)} ago" if seconds > 0 else f"in {short(-seconds)}"
    whole = to_text(at)[:19]
    return Markup('<time datetime="{0}Z" title="{1} UTC">{2}</time>').format(whole.replace(" ", "T"), whole, shown)


def short(seconds: float) -> str:
    """Return a duration without fractions, so that a page is not drawn again for a tenth of a second."""
    if seconds < 60:
        return f"{int(seconds)} s"
    return f"{int(seconds // 60)} min" if seconds < 3600 else duration_text(seconds)


def share(part: float, whole: float) -> str:
    """Return a percentage, rounded down, so that 100 % means that nothing is left."""
    return f"{part * 1000 // whole / 10 if whole else 0.0:.1f} %"


def link(page: str, /, **fields: object) -> str:
    """Return a link to a page of the dashboard with the fields that have a value. All pages are beside each other."""
    given = [(name, each) for name, value in fields.items() if value not in (None, "", False) for each in _texts(value)]
    return f"./{page}{'?' if given else ''}{urlencode(given)}"


def _texts(value: object) -> Sequence[object]:
    return ["1"] if value is True else [value]


def is_plain(text: str) -> bool:
    """Return whether *text* has no control characters and no others that are invisible or turn the direction of writing."""
    return safe_text(text, limit=len(text)) == text


def field(name: str, value: object) -> Markup:
    """Return the name and the value of an input that a browser sends back unchanged.

    A browser changes line breaks in a form. So a text with control characters is sent as JSON, in a field whose name says so.
    """
    text = str(value)
    return Markup('name="{}" value="{}"').format(*((name, text) if is_plain(text) else (f"{name}{JSON_FIELD}", json.dumps(text))))


def name_text(name: str, *, limit: int) -> str:
    """Return the name of a batch, or the id of an item, as the text of a link or a heading: one that a person can see."""
    shown = safe_text(name, limit=limit)
    return shown if shown.strip() else json.dumps(shown)


def sentence(text: str) -> str:
    """Return *text* with a capital at its start; the rest, such as an id, is unchanged."""
    return f"{text[:1].upper()}{text[1:]}"


def bytes_text(size: float) -> str:
    """Return a size for people, as in ``12 B``, ``4.5 kB`` or ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def spark(values: Sequence[float], label: str) -> Markup:
    """Return bars for *values* as a drawing with a text that says the same."""
    most = max(values, default=0)
    if not most:
        return Markup("")
    bars = Markup("").join(
        Markup('<rect x="{}" y="{}" width="2" height="{}"/>').format(
            3 * at, _SPARK_HEIGHT - (height := max(1, round(_SPARK_HEIGHT * value / most))), height
        )
        for at, value in enumerate(values)
        if value
    )
    return Markup('<svg class="spark" role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">{}</svg>').format(
        label, 3 * len(values), _SPARK_HEIGHT, bars
    )


def _asset(name: str) -> str:
    return f"./static/{assets()[name].name}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("asyncrunner.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "shown": safe_text,
        "named": name_text,
        "lines": lines,
        "json_lines": json_lines,
        "duration": duration_text,
        "rate": rate_text,
        "bytes": bytes_text,
        "number": "{:,}".format,
        "sentence": sentence,
    }
    environment.filters.update(filters)
    names: dict[str, Any] = {
        "as_json": json.dumps,
        "asset": _asset,
        "counted": counted,
        "field": field,
        "is_plain": is_plain,
        "link": link,
        "moment": moment,
        "share": share,
        "short": short,
        "spark": spark,
    }
    environment.globals.update(names)
    return environment


ENVIRONMENT: Final = _environment()


def prepare() -> None:
    """Compile the templates now, which takes a tenth of a second, and not in the event loop of the first request."""
    for name in ENVIRONMENT.list_templates():
        ENVIRONMENT.get_template(name)


def now_text() -> str:
    """Return the time of this machine as the rows have it."""
    return to_text(datetime.now(UTC).timestamp())


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a whole page, or the part of one."""
    return ENVIRONMENT.get_template(template).render(values)
