"""Files that are deleted or replaced during a run, and places where a database must not be (rows 31 and 32)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from asyncrunner import run_batch
from asyncrunner.errors import StoreError
from asyncrunner.sqlite.file import creation
from asyncrunner.sqlite.file.filesystem import file_system, is_network
from asyncrunner.sqlite.store import SQLiteStore
from tests.support.processes import Jobs

pytestmark = pytest.mark.sqlite_file

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /home/me/with\040space rw shared:7 - nfs4 server:/export rw
31 27 0:41 / /srv rw - virtiofs share rw
32 31 0:42 / /srv/local rw - xfs /dev/vdb rw
33 27 0:43 / /over rw - ext4 /dev/vdc rw
34 27 0:44 / /over rw - fuse.sshfs me@there: rw
35 27 0:45 / /vm rw - vboxsf share rw
36 35 0:46 / /vm/tools rw - fuse.vmhgfs-fuse vmhgfs-fuse rw
37 35 0:47 / /vm/encrypted rw - fuse.gocryptfs /home/me/.vault rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "refused"),
    [
        ("/tmp/jobs.db", "ext4", False),
        ("/home/me/with space/jobs.db", "nfs4", True),
        ("/home/me/with", "ext4", False),
        ("/srv/jobs.db", "virtiofs", True),
        ("/srv/local/jobs.db", "xfs", False),
        ("/srv/localities/jobs.db", "virtiofs", True),
        ("/over/jobs.db", "fuse.sshfs", True),
        ("/vm/jobs.db", "vboxsf", True),
        ("/vm/tools/jobs.db", "fuse.vmhgfs-fuse", True),
        ("/vm/encrypted/jobs.db", "fuse.gocryptfs", False),
    ],
)
def test_row_32_the_mount_of_a_path_is_the_innermost_and_newest(path: str, kind: str, refused: bool, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system(Path(path), mounts) == kind
    assert is_network(kind) is refused


@pytest.mark.parametrize(
    "kind",
    [
        "vboxsf", "vmhgfs", "fuse.vmhgfs-fuse", "prl_fs", "fakeowner", "fuse.fakeowner", "grpcfuse", "fuse.grpcfuse", "osxfs",
        "fuse.osxfs", "fuse.mount-s3", "fuse.mountpoint-s3", "fuse.goofys", "fuse.blobfuse2", "fuse.davfs2", "davfs", "fuse",
        "fuse.gvfsd-fuse", "fuse.sshfs", "nfs4",
    ],
)  # fmt: skip
def test_row_32_folders_that_another_machine_or_a_host_shares_are_known(kind: str) -> None:
    assert is_network(kind) is (kind != "fuse")


def test_row_32_without_mountinfo_no_mount_is_known(tmp_path: Path) -> None:
    assert file_system(tmp_path, tmp_path / "none") is None
    assert not is_network(None)


async def test_row_32_a_network_mount_is_refused_with_the_reason_and_no_file_is_written(
    db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "file_system", lambda _: "nfs4")
    with pytest.raises(StoreError, match=r"on a network file system \(nfs4\).*give a path on a disk of this machine"):
        await SQLiteStore(db).open()
    assert list(Path(db).parent.iterdir()) == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_row_31_a_run_stops_with_an_error_when_its_file_is_deleted_or_replaced(how: str, suffix: str, jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:work", jobs.items(2000), "-c", "2", "--batch", "b", seconds=0.05)
    jobs.until(lambda: len(jobs.lines("end")) > 20)
    victim = jobs.db.with_name(jobs.db.name + suffix)
    if how == "deleted":
        victim.unlink()
    else:
        other = jobs.folder / "other"
        other.write_bytes(victim.read_bytes())
        other.replace(victim)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2, said
    assert f"asyncrunner.db{suffix}" in said
    assert "was deleted" in said
    assert "replaced while this process used it" in said
    assert "Traceback" not in said


async def test_row_31_after_the_log_was_deleted_the_next_run_finds_a_sound_file(jobs: Jobs) -> None:
    items = jobs.items(300)
    process = jobs.start("run", "h.py:work", items, "-c", "2", "--batch", "b", seconds=0.05)
    jobs.until(lambda: len(jobs.lines("end")) > 20)
    jobs.db.with_name(jobs.db.name + "-wal").unlink()
    assert process.wait(20) == 2
    code, said = jobs.run("run", "h.py:work", items, "-c", "20", "--batch", "b")
    assert code == 0, said
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1") == [("completed", 300)]
    assert jobs.query("PRAGMA integrity_check") == [("ok",)]


async def test_a_link_in_a_world_writable_folder_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    target = tmp_path / "precious"
    link = shared / "jobs.db"
    link.symlink_to(target)
    with pytest.raises(
        StoreError, match=r"symbolic link in a folder that every user may write to.*give the path of the file itself"
    ):
        await run_batch([1], _same, db=link, progress=False)
    assert not target.exists()
    shared.chmod(0o700)
    assert (await run_batch([1], _same, db=link, progress=False)).completed == 1
    assert target.exists()


async def test_a_second_name_of_the_database_is_refused(db: str) -> None:
    await run_batch([1], _same, db=db, progress=False)
    path = Path(db)
    draft = path.with_name(f".{path.name}.0123456789ab.new")
    os.link(path, draft)  # a kill while the file is created leaves one
    assert (await run_batch([2], _same, db=db, progress=False)).completed == 1
    other = path.with_name("other.db")
    os.link(path, other)
    for name in (path, other):
        with pytest.raises(StoreError, match=f"{name.name} has a second name, a hard link"):
            await run_batch([3], _same, db=name, progress=False)
    other.unlink()
    interrupted = path.with_name(f"{path.name}.replaced-20261126-185445")
    os.link(path, interrupted)
    with pytest.raises(StoreError, match=r"was interrupted; run `asyncrunner restore` again"):
        await run_batch([3], _same, db=db, progress=False)


async def _same(n: int) -> int:
    return n


def without_privileges() -> tuple[str, ...]:
    """Return a command prefix under which file modes also hold for root."""
    if os.geteuid() != 0:
        return ("env",)
    under = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    tried = subprocess.run([*under, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"modes do not hold for root here: {tried.stderr.strip()}")
    return under


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o500, 0o400), (0o700, 0o400), (0o500, 0o600)])
def test_row_30_a_read_only_place_is_reported_and_status_still_reads(folder_mode: int, file_mode: int, jobs: Jobs) -> None:
    under = without_privileges()
    assert jobs.run("run", "h.py:work", jobs.items(3), "--batch", "b")[0] == 0
    jobs.items(5)
    before = jobs.db.read_bytes()
    locks = jobs.db.with_name(jobs.db.name + "-locks")
    jobs.db.chmod(file_mode)
    locks.chmod(folder_mode)
    jobs.folder.chmod(folder_mode)
    try:
        status = jobs.start("status", under=under)
        shown, error = status.communicate(timeout=30)
        assert (status.returncode, error) == (0, "")
        assert "completed 3" in " ".join(shown.split()), shown
        code, said = jobs.run("run", "h.py:work", "items.txt", "--batch", "b", under=under)
    finally:
        jobs.folder.chmod(0o700)
        locks.chmod(0o700)
        jobs.db.chmod(0o600)
    assert code == 2, said
    assert "Traceback" not in said
    assert "check its owner and permissions" in said or "must belong to the user who runs asyncrunner" in said
    assert jobs.db.read_bytes() == before
    assert jobs.run("run", "h.py:work", "items.txt", "--batch", "b")[0] == 0, "the attempt changed no file"


def test_row_30_a_user_who_may_not_read_what_a_worker_uses_gets_one_line(jobs: Jobs) -> None:
    under = without_privileges()
    jobs.start("run", "h.py:forever", jobs.items(1), "--batch", "b", "--quiet")
    jobs.until(lambda: jobs.lines("start"))
    wal, locks = jobs.db.with_name(jobs.db.name + "-wal"), jobs.db.with_name(jobs.db.name + "-locks")
    try:
        for path in (jobs.db, wal):
            path.chmod(0)
            code, said = jobs.run("status", under=under)
            assert (code, said.count("\n")) == (2, 1), said
            assert f"{path} cannot be read (Permission denied); check its owner and permissions" in said
            path.chmod(0o600)
        locks.chmod(0)
        shown = {}
        for command in ("status", "doctor"):
            out, _ = jobs.start(command, under=under).communicate(timeout=60)
            shown[command] = " ".join(out.split())
        assert "its lock is missing or you may not open it" in shown["status"]
        assert "you may not open the lock files in" in shown["doctor"]
        assert "deletes files" not in shown["doctor"]
    finally:
        for path in (locks, jobs.db, wal):
            path.chmod(0o700)
        jobs.kill()


def test_row_30_a_folder_that_may_not_be_written_takes_no_new_file(jobs: Jobs) -> None:
    under = without_privileges()
    items = jobs.items(3)
    jobs.folder.chmod(0o500)
    try:
        code, said = jobs.run("run", "h.py:work", items, under=under)
    finally:
        jobs.folder.chmod(0o700)
    assert (code, "Traceback" in said) == (2, False), said
    assert "permissions" in said
    assert not jobs.db.exists()
