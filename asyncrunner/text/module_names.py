"""Names of the modules of handler files, also for a file such as ``json.py``, whose name another module has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PREFIX: Final = "asyncrunner_file_"


def module_of_file(path: Path) -> str:
    """Return the name under which Python imports the file at *path*: with its package, ``shop.prices`` for shop/prices.py.

    A folder is a package if it has an ``__init__.py``. The file need not exist.
    """
    path = path.absolute()
    names = [path.stem]
    for folder in package_folders(path):
        names.insert(0, folder.name)
    return ".".join(names)


def package_folders(path: Path) -> list[Path]:
    """Return the folders of the packages that the file at *path* belongs to, the innermost first."""
    folders: list[Path] = []
    for folder in path.absolute().parents:
        if not folder.name.isidentifier() or not (folder / "__init__.py").is_file():
            break
        folders.append(folder)
    return folders if path.stem.isidentifier() else []


def file_module(name: str) -> str:
    """Return the name under which a file is imported if another module has the name *name*."""
    return _PREFIX + name


def shown_module(name: str) -> str:
    """Return the name of a module, or of a class with its module, as users, batches and stored errors show it."""
    return name.removeprefix(_PREFIX)
