"""Import a handler's file as a module, without replacing a module that has the file's name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from asyncrunner.text.module_names import file_module, module_of_file, package_folders, shown_module


def import_file(path: Path, name: str | None = None) -> ModuleType:
    """Import the file at *path*, and add its folder to ``sys.path`` for its own imports; return the module.

    A file that is imported already is not executed again: a second module would have other classes, so that an error which
    the handler raises would not be an instance of the class that an option names.
    The module has the name that the file's default batches have when it is run as a script or with ``python -m``: the stem
    of the file, after its package if its folder has an ``__init__.py``. If another module has this name, the file is
    imported under a longer name, and its folder comes last in ``sys.path``: otherwise later imports of the other module
    would import the file. A child process gives the *name* that its parent has chosen. Raises ImportError for a file that
    is not a Python file, and the exceptions of the file.
    """
    path = path.absolute()
    own = module_of_file(path)
    name = name or (file_module(own) if _is_taken(path, own) else own)
    imported = sys.modules.get(name)
    if imported is not None and getattr(imported, "__file__", None) == str(path):
        return imported
    if name == own and "." in own:
        sys.path.insert(0, str(package_folders(path)[-1].parent))
        sys.path.append(str(path.parent))  # as for a script, the files beside it can be imported
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file; give a .py file", path=str(path))
    sys.path.insert(0 if name == own else len(sys.path), str(path.parent))
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


def _is_taken(path: Path, name: str) -> bool:
    top, _, rest = name.partition(".")
    if top in sys.stdlib_module_names:  # also those that are not imported yet
        return True
    imported = sys.modules.get(top)
    own = package_folders(path)[-1] / "__init__.py" if rest else path
    return imported is not None and getattr(imported, "__file__", None) != str(own)
