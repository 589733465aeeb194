"""A connection that breaks during a call leaves nothing hanging and nothing twice, whether or not the server ran the call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncrunner.backends import open_engine
from asyncrunner.domain.clock import SystemClock
from asyncrunner.domain.item import Counts, NewItem
from asyncrunner.domain.outcome import Completed, Failed, Retrying, Settlement
from asyncrunner.errors import KeyConflict, StoreUnavailable
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from asyncrunner.store.retrying import RetryingStore
from asyncrunner.store.turn import Checkpoint, Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, LOST, NOW
from tests.support.kinds import KINDS
from tests.support.state import rows_of
from tests.support.tcp_proxy import Fault, TcpProxy

LOST_BEFORE_AND_AFTER = pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER], ids=["before", "after"])


@pytest.fixture
def direct(server_dsn: str, tmp_path: Path) -> str:
    """The location of the store on the server itself, for the test's own look."""
    return KINDS["postgres"].new_location(tmp_path, "jobs.db")


@pytest.fixture
async def store(proxy: TcpProxy, direct: str) -> AsyncIterator[Store]:
    """A store behind the proxy, as the engine uses it: a call that is not possible for now is repeated."""
    made = open_engine(proxy.url(direct), clock=FakeClock(NOW))
    await made.open()
    yield RetryingStore(made, SystemClock())
    await made.close()


async def batch_with(store: Store, count: int) -> int:
    batch = await store.open_batch("b", "m:h", BatchOptions(max_attempts=3))
    await store.add(batch.batch_id, [NewItem(str(number), str(number)) for number in range(count)], on_change="error")
    await store.join(WorkerInfo("w", "here", 1))
    return batch.batch_id


@LOST_BEFORE_AND_AFTER
async def test_a_turn_settles_once_and_returns_what_it_claimed(store: Store, proxy: TcpProxy, direct: str, fault: Fault) -> None:
    batch_id = await batch_with(store, 6)
    first = (await store.turn("w", [], [Want(batch_id, 3, 3)])).claims
    settlements = [
        Settlement(first[0], Completed('"done"'), NOW, NOW + 1),
        Settlement(first[1], Retrying(BOOM, 0.0), NOW, NOW + 1),
        Settlement(first[2], Failed(BOOM, permanent=True), NOW, NOW + 1),
    ]
    occurrence = proxy.at("FROM turn(", fault)
    turn = await store.turn("w", settlements, [Want(batch_id, 2, 3)], checkpoints=[Checkpoint(first[1], "[1]")])
    await occurrence.happened()
    assert (list(turn.lost), list(turn.reruns), turn.outcast) == ([], [], False)
    assert sorted((claim.id, claim.attempt) for claim in turn.claims) == [("1", 2), ("3", 1)]
    assert await store.counts(batch_id) == Counts(pending=2, processing=2, completed=1, failed=1)
    assert rows_of(direct, "SELECT id, attempt FROM failures ORDER BY id") == [("1", 1), ("2", 1)]
    assert rows_of(direct, "SELECT id, attempts, claim FROM items WHERE id < '3' ORDER BY id") == [
        ("0", 1, 1),
        ("1", 2, 2),
        ("2", 1, 1),
    ]
    rest = await store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW) for claim in turn.claims], [Want(batch_id, 9, 3)])
    assert (list(rest.lost), sorted(claim.id for claim in rest.claims)) == ([], ["4", "5"])


@LOST_BEFORE_AND_AFTER
async def test_a_turn_names_what_it_dropped_although_its_answer_was_lost(
    store: Store, proxy: TcpProxy, direct: str, fault: Fault
) -> None:
    batch_id = await batch_with(store, 3)
    lost, rerun, fine = (await store.turn("w", [], [Want(batch_id, 3, 3)])).claims
    await store.cancel(batch_id, [lost.id])
    await store.add(batch_id, [NewItem(rerun.id, '"new"')], on_change="rerun")
    occurrence = proxy.at("FROM turn(", fault)
    turn = await store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW) for claim in (lost, rerun, fine)], [])
    await occurrence.happened()
    assert ([claim.id for claim in turn.lost], [claim.id for claim in turn.reruns]) == (["0"], ["1"])
    assert rows_of(direct, "SELECT id, status, payload FROM items ORDER BY id") == [
        ("0", "cancelled", "0"),
        ("1", "pending", '"new"'),
        ("2", "completed", "2"),
    ]


@pytest.mark.parametrize(
    "faults", [(Fault.CUT_AFTER, Fault.CUT_AFTER), (Fault.CUT_AFTER, Fault.CUT_BEFORE)], ids=["twice", "then not run"]
)
async def test_two_lost_answers_in_a_row_lose_no_claim(
    store: Store, proxy: TcpProxy, direct: str, faults: tuple[Fault, Fault]
) -> None:
    batch_id = await batch_with(store, 5)
    occurrences = [proxy.at("FROM turn(", fault) for fault in faults]
    with pytest.raises(StoreUnavailable):
        await bare(store).turn("w", [], [Want(batch_id, 2, 3)])
    turn = await store.turn("w", [], [Want(batch_id, 4, 3)])
    for occurrence in occurrences:
        await occurrence.happened()
    assert sorted(claim.id for claim in turn.claims) == ["0", "1", "2", "3"]
    assert rows_of(direct, "SELECT count(*), max(attempts) FROM items WHERE status = 'processing'") == [(4, 1)]


async def test_a_turn_with_other_outcomes_settles_those_of_the_lost_one_once(store: Store, proxy: TcpProxy, direct: str) -> None:
    batch_id = await batch_with(store, 2)
    first, second = (await store.turn("w", [], [Want(batch_id, 2, 3)])).claims
    proxy.at("FROM turn(", Fault.CUT_AFTER)
    with pytest.raises(StoreUnavailable):
        await bare(store).turn("w", [Settlement(first, Completed("1"), NOW, NOW)], [])
    both = [Settlement(claim, Completed("1"), NOW, NOW) for claim in (first, second)]
    turn = await store.turn("w", both, [])
    assert list(turn.lost) == []
    assert rows_of(direct, "SELECT sum(completed) FROM history") == [(2,)], "each completion counts once"


@LOST_BEFORE_AND_AFTER
@pytest.mark.parametrize("count", [1, 200], ids=["small", "large"])
@pytest.mark.parametrize("on_change", ["error", "refuse"])
async def test_an_addition_counts_its_items_as_new_and_refuses_none_of_its_own(
    store: Store, proxy: TcpProxy, direct: str, fault: Fault, count: int, on_change: str
) -> None:
    batch_id = await batch_with(store, 1)
    occurrence = proxy.at("FROM add_items(", fault)
    entries = [NewItem(f"new-{number}", "1") for number in range(count)]
    added = await store.add(batch_id, entries, on_change=on_change)  # type: ignore[arg-type]
    await occurrence.happened()
    assert (added.new, added.existing, len(set(added.seqs)), added.known) == (count, 0, count, frozenset())
    assert await store.counts(batch_id) == Counts(pending=count + 1)
    with pytest.raises(KeyConflict):
        await store.add(batch_id, entries, on_change="refuse")
    assert await store.counts(batch_id) == Counts(pending=count + 1)


@LOST_BEFORE_AND_AFTER
async def test_a_recovery_returns_its_number_of_items(store: Store, proxy: TcpProxy, direct: str, fault: Fault) -> None:
    batch_id = await batch_with(store, 3)
    await store.turn("w", [], [Want(batch_id, 2, 3)])
    occurrence = proxy.at("recover_worker(", fault)
    assert await store.recover("w", LOST) == 2
    await occurrence.happened()
    assert await store.counts(batch_id) == Counts(pending=3)
    assert rows_of(direct, "SELECT sum(crashes), count(*) FROM items WHERE crashes > 0") == [(2, 2)]
    assert await store.recover("w", LOST) == 0


@pytest.mark.parametrize("statement", ["release_worker(", "INSERT INTO batches", "UPDATE workers SET"])
@LOST_BEFORE_AND_AFTER
async def test_other_verbs_are_repeated_without_harm(
    store: Store, proxy: TcpProxy, direct: str, statement: str, fault: Fault
) -> None:
    batch_id = await batch_with(store, 2)
    await store.turn("w", [], [Want(batch_id, 1, 3)])
    occurrence = proxy.at(statement, fault)
    if statement.startswith("release"):
        await store.leave("w")
        assert rows_of(direct, "SELECT attempts, status FROM items") == [(0, "pending")] * 2
    elif statement.startswith("INSERT"):
        assert (await store.open_batch("b", "m:h", BatchOptions())).batch_id == batch_id
    else:
        assert not (await store.beat("w", Vitals(processed=3))).outcast
        assert rows_of(direct, "SELECT items_processed FROM workers") == [(3,)]
    await occurrence.happened()


def bare(store: Store) -> Store:
    """The store itself, which repeats no call."""
    assert isinstance(store, RetryingStore)
    return store._store


async def test_a_new_session_knows_the_given_items_also_those_of_several_statements(
    store: Store, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncrunner.postgres.store._GIVEN_AGAIN_PER_STEP", 2)
    batch_id = await batch_with(store, 8)
    seqs = [row.seq for row in (await store.item_page(batch_id, None, 100)).rows]
    await store.give(batch_id, seqs[:3], max_attempts=0)
    await store.give(batch_id, seqs[5:7], max_attempts=0)
    assert proxy.cut() > 0
    turn = await store.turn("w", [], [Want(batch_id, 9, 3, only_given=True)])
    assert [claim.seq for claim in turn.claims] == [*seqs[:3], *seqs[5:7]]
