"""Import a handler's file as a module, without replacing a module that has the file's name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from asyncrunner.text.module_names import file_module, shown_module


def import_file(path: Path, name: str | None = None) -> ModuleType:
    """Import the file at *path*, and put its folder on the path for its own imports; return the module.

    The stem of the file is the module's name, so that its handlers have the same batches as in a script that is run
    directly. If another module has this name, the file is imported under a longer name, and its folder comes last on the
    path: otherwise later imports of the other module would import the file. A child process gives the *name* that its
    parent has chosen. Raises ImportError for a file that is not a Python file, and the exceptions of the file.
    """
    path = path.absolute()
    name = name or (file_module(path.stem) if _is_taken(path) else path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file; give a .py file", path=str(path))
    sys.path.insert(0 if name == path.stem else len(sys.path), str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def file_of(module: str) -> str | None:
    """Return the path of a module that only ``import_file`` can import; None for any other module."""
    if shown_module(module) == module:
        return None
    return getattr(sys.modules.get(module), "__file__", None)


def _is_taken(path: Path) -> bool:
    if path.stem in sys.stdlib_module_names:  # also those that are not imported yet
        return True
    imported = sys.modules.get(path.stem)
    return imported is not None and getattr(imported, "__file__", None) != str(path)
