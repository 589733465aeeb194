"""The third-party files of the dashboard: where each is from, in which version, and its hash.

``python -m tests.support.vendored_assets`` fetches the packages again from the npm registry and compares the files; it needs
npm. With ``--write`` it replaces the files that differ. To take a newer version, change it in ``FILES``, run the program with
``--write``, and put the hashes that it prints into ``FILES``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

STATIC: Final = Path(__file__).parents[2] / "asyncrunner" / "dashboard" / "static"


class VendoredFile(NamedTuple):
    """A file from a package of npm. ``member``: its path in the package; ``name``: its name in ``static``."""

    name: str
    package: str
    version: str
    member: str
    sha256: str


FILES: Final = (
    VendoredFile(
        "idiomorph.min.js", "idiomorph", "0.8.0", "dist/idiomorph.min.js",
        "4cbd535caf7663a51eda9bce6595371c384fc430d54b8d414e29a61167f19f96",
    ),
    VendoredFile(
        "idiomorph.LICENSE", "idiomorph", "0.8.0", "LICENSE",
        "d3d2456f76414f2456104660ebd65aff1c04cd7966b942bdabd63f3cdb316a38",
    ),
    VendoredFile(
        "uPlot.iife.min.js", "uplot", "1.6.32", "dist/uPlot.iife.min.js",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    VendoredFile(
        "uPlot.min.css", "uplot", "1.6.32", "dist/uPlot.min.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
    VendoredFile(
        "uPlot.LICENSE", "uplot", "1.6.32", "LICENSE",
        "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    ),
)  # fmt: skip


def sha256(content: bytes) -> str:
    """Return the SHA-256 hash in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def differences(folder: Path = STATIC) -> list[str]:
    """Return a line for each file of the table that is missing in *folder* or has another content. No network."""
    lines: list[str] = []
    for file in FILES:
        path = folder / file.name
        if not path.is_file():
            lines.append(f"{file.name} is missing")
        elif (found := sha256(path.read_bytes())) != file.sha256:
            lines.append(f"{file.name}: sha256 {found}, expected {file.sha256} from {file.package} {file.version}")
    return lines


def fetched(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files, by name, from packages that npm downloads to *folder*."""
    contents: dict[str, bytes] = {}
    for package, version in sorted({(file.package, file.version) for file in FILES}):
        command = ["npm", "pack", "--silent", "--ignore-scripts", f"{package}@{version}"]
        (name,) = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        with tarfile.open(folder / name) as archive:
            for file in FILES:
                if file.package == package:
                    member = archive.extractfile(f"package/{file.member}")
                    assert member is not None, f"{package} {version} has no {file.member}"
                    contents[file.name] = member.read()
    return contents


def main(arguments: list[str]) -> int:
    """Compare the files with the packages of npm, or replace them. Returns 1 if one differs."""
    with tempfile.TemporaryDirectory() as folder:
        contents = fetched(Path(folder))
    differs = False
    for file in FILES:
        content = contents[file.name]
        path = STATIC / file.name
        is_equal = path.is_file() and path.read_bytes() == content and file.sha256 == sha256(content)
        differs = differs or not is_equal
        if not is_equal and "--write" in arguments:
            path.write_bytes(content)
        print(f"{'equal  ' if is_equal else 'differs'}  {file.package} {file.version} {file.member}: sha256 {sha256(content)}")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
