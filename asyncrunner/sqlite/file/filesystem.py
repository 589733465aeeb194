"""Detect network file systems, and folders that a host shares with a virtual machine or a container.

They lack the shared memory and the locks that SQLite's write-ahead log needs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MOUNT_TABLE: Final = Path("/proc/self/mountinfo")

# FUSE shows a file system as fuse.NAME, and some systems show it as NAME.
_NETWORK_TYPES: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fakeowner", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
        "nfs4", "ocfs2", "orangefs", "osxfs", "panfs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
        "afpfs", "blobfuse", "blobfuse2", "davfs2", "gcsfuse", "goofys", "grpcfuse", "gvfsd-fuse", "juicefs",
        "mount-s3", "mountpoint-s3", "rclone", "s3fs", "sshfs", "vmhgfs-fuse",
    }
)  # fmt: skip


def file_system(path: Path, mounts: Path = _MOUNT_TABLE) -> str | None:
    """Return the type of the file system of *path*, as in mount(8); None if the system has no readable mount table."""
    try:
        text = mounts.read_text(errors="surrogateescape")
    except OSError:
        return None
    resolved = path.resolve()
    best: tuple[int, str] | None = None
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_unescaped(fields[4]))
        depth = len(point.parts)
        # If two mounts have the same mount point, the later mount hides the earlier mount.
        if resolved.is_relative_to(point) and (best is None or depth >= best[0]):
            best = (depth, after.split(" ")[0])
    return None if best is None else best[1]


def is_network(kind: str | None) -> bool:
    """Return whether *kind* is a network file system, or another kernel's file system, where this kernel's locks fail."""
    return kind is not None and kind.removeprefix("fuse.") in _NETWORK_TYPES


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), field)
