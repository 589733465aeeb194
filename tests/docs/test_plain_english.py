"""A short list of words that make a text hard to read or to search appears in no text of the project.

The list has only words for which there is always a plainer one: a noun of the field for a pronoun, a verb for an idiom.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TEXTS = (
    "README.md",
    "CHANGELOG.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/guides/*.md",
    "docs/concepts/*.md",
    "docs/reference/options.md",
    "docs/reference/tables.md",
    "docs/reference/cli.md",
    "docs/architecture.md",
    "tests/README.md",
    "asyncrunner/**/*.py",
    "benchmarks/**/*.py",
    "tests/**/*.py",
)
"""Files that are checked, as glob patterns. Of a .py file the comments, docstrings and other string literals are checked."""

BANNED = (
    r"nobod[y]",
    r"somebod[y]",
    r"whoeve[r]",
    r"for\s+good",
    r"at\s+once",
    r"goes\s+on",
    r"is\s+told",
    r"are\s+told",
    r"hears\s+of",
    r"shal[l]",
)
"""Regular expressions, written so that none matches its own text: this file is checked too."""

PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file, each with the number of its first line."""
    source = path.read_text()
    if path.suffix == ".py":
        yield from comments_of(source)
        yield from strings_of(source)
    else:
        yield 1, source


def comments_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield blocks of comments: lines of comment that follow each other are one text."""
    first, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != first + len(lines):
            yield first, "\n".join(lines)
            first, lines = token.start[0], []
        lines.append(token.string.lstrip("#! "))
    yield first, "\n".join(lines)


def strings_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield string literals, docstrings included; adjacent literals are one text, as for Python."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def banned_words(path: Path) -> list[str]:
    """Return the banned words of a file, each with its line."""
    return [
        f"{path.name}:{line + text.count(chr(10), 0, match.start())}: {' '.join(match[0].split())}"
        for line, text in texts_of(path)
        for match in PATTERN.finditer(text)
    ]


@pytest.mark.parametrize("pattern", TEXTS)
def test_no_text_has_a_banned_word(pattern: str) -> None:
    paths = sorted(ROOT.glob(pattern))
    assert paths, f"{pattern} matches no file"
    assert [word for path in paths for word in banned_words(path)] == []


def test_banned_words_are_found_in_comments_docstrings_and_messages_but_not_in_names(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        _plain(
            '"""Some*body reads this."""\n'
            "\n"
            "no*body = shall_not = 1  # it goes\n"
            "# on for a while\n"
            "# and No*body's item\n"
            'message = f"{no*body} failed for "\\\n'
            '    f"good"\n'
        )
    )
    expected = ["module.py:3: goes* on", "module.py:5: No*body", "module.py:1: Some*body", "module.py:6: for* good"]
    assert banned_words(module) == [_plain(line) for line in expected]
    module.write_text('message = ("it is "\n    "told")\n')
    assert banned_words(module) == [_plain("module.py:1: is* told")]


def _plain(marked: str) -> str:
    # The asterisks keep the banned words out of this file.
    return marked.replace("*", "")
