"""Files that vanish or are swapped under a run, and places where a database must not be (rows 31 and 32)."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrunner import run_batch
from asyncrunner.errors import StoreError
from asyncrunner.sqlite import SQLiteStore, file
from asyncrunner.sqlite.mounts import file_system, is_network
from tests.processes import Jobs

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /home/me/with\040space rw shared:7 - nfs4 server:/export rw
31 27 0:41 / /srv rw - virtiofs share rw
32 31 0:42 / /srv/local rw - xfs /dev/vdb rw
33 27 0:43 / /over rw - ext4 /dev/vdc rw
34 27 0:44 / /over rw - fuse.sshfs me@there: rw
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
    ],
)
def test_row_32_the_mount_of_a_path_is_the_innermost_and_newest(path: str, kind: str, refused: bool, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system(Path(path), mounts) == kind
    assert is_network(kind) is refused


def test_row_32_no_mountinfo_tells_nothing(tmp_path: Path) -> None:
    assert file_system(tmp_path, tmp_path / "none") is None
    assert not is_network(None)


async def test_row_32_a_network_mount_is_refused_with_the_reason_and_nothing_is_written(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "file_system", lambda _: "nfs4")
    with pytest.raises(StoreError, match=r"on a network file system \(nfs4\).*give a path on a disk of this machine"):
        await SQLiteStore(db).open()
    assert list(db.parent.iterdir()) == []


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_row_31_a_file_that_vanishes_or_is_swapped_under_a_run_stops_it_loudly(how: str, suffix: str, jobs: Jobs) -> None:
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


async def test_a_link_in_a_folder_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    target = tmp_path / "precious"
    link = shared / "jobs.db"
    link.symlink_to(target)
    with pytest.raises(
        StoreError, match=r"symbolic link in a folder that everybody may write to.*give the path of the file itself"
    ):
        await run_batch([1], _same, db=link, progress=False)
    assert not target.exists()
    shared.chmod(0o700)
    assert (await run_batch([1], _same, db=link, progress=False)).completed == 1
    assert target.exists()


async def _same(n: int) -> int:
    return n
