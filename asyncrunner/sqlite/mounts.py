"""What kind of file system a path is on. SQLite's write-ahead log needs shared memory and locks that a network does not give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["file_system", "is_network"]

_MOUNTS: Final = Path("/proc/self/mountinfo")

_NETWORK: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
        "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs",
        "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    }
)  # fmt: skip


def file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the file system that *path* is on, as mount(8) calls it; None where the system does not tell."""
    try:
        text = mounts.read_text(errors="surrogateescape")
    except OSError:
        return None
    wanted = path.resolve()
    best: tuple[int, str] | None = None
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_unescaped(fields[4]))
        depth = len(point.parts)
        # Of two mounts on one point the later hides the earlier.
        if wanted.is_relative_to(point) and (best is None or depth >= best[0]):
            best = (depth, after.split(" ")[0])
    return None if best is None else best[1]


def is_network(kind: str | None) -> bool:
    """Whether that type reaches over a network, or to another kernel, where the locks of this one mean nothing."""
    return kind in _NETWORK


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
