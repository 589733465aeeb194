"""The whole runner in a simulation: worker, heartbeat, watchdog, retries, several processes on one store, on a virtual clock.

``loop``: an event loop whose time leaps to the next timer. ``disk``: the real store, with its statements and groups, on a database in
memory; an actor replaces its thread, and faults occur where SQLite has them. ``stretch``: longer periods for the engine. ``process``: a
runner with a handler and callers, which can be killed between any two callbacks. ``scenario`` and ``world``: the faults of a scenario and
their times. ``ledger``: a check of every commit against the permitted changes. Every random choice comes from the seed of the scenario,
so a scenario always has the same history::

    python -m tests.simulation --hours 1000      # new scenarios, one after the other
    python -m tests.simulation --seed 7          # one of them again, with its history
    python -m tests.simulation --replay JSON     # the one that a failing test printed

All "processes" live in one interpreter. After SIGKILL, no callback of the process runs again; after SIGSTOP, none runs for a while; while
its loop is blocked, the thread of its store continues.

The invariants by number, and where they are checked:

1   each key has one row, and the counts add up: ``Ledger.submitted``, ``committed`` and ``_check_counts``, after each commit
2   a completed item stays completed unless an operator changes it: ``Ledger._moved``, for every row that a commit changed
3   result and error carry the number of the claim that made them: ``Ledger._ended_claim``, ``_check_failed``, ``acknowledged``
4   an item has one live claim, claim numbers are never reused, and only a worker holds a processing item: ``Ledger.started``, ``_claimed``, ``_check_whole``
5   the number of attempts is exact: each is charged, refunded and limited: ``Ledger._moved``, ``_claimed``, ``_ended_claim``
6   an acknowledged item is durable: ``Ledger.submitted`` and ``acknowledged``, at the time of the acknowledgement
7   a completed item is not started again: ``Ledger.started``, and ``World._resume``
8   after the last fault all items finish in bounded time: ``World._all_done``
9   a worker that lives, holds its lock and beats keeps its items: ``Ledger._check_robbed``
10  the items of a dead process are released within one check by a healthy one: ``World.check_recovered_soon``
11  no retry starts before its time, and no delay exceeds its cap: ``Ledger._left_pending`` and ``_check_delay``
12  stored counts, the history among them, equal recounted ones: ``Ledger._check_counts``, after every commit that may have changed items
13  the numbers of running handlers and of claims are bounded: ``Ledger.started`` and ``_check_whole``
14  the items of one call are stored all or not at all, and a refused call fails alone: ``Ledger._check_whole`` and ``refused``
15  no cancellation leaves a transaction open: ``Disk.idle``, after each call of a store's thread
16  the file is intact: ``World._check_file`` for the database in memory; for real files ``crash/history.py``, after every kill
17  a finished batch that is run again runs no item and changes no row: ``World._resume``
18  no task and no lock remains: ``Process._check_clean``; threads and descriptors: ``test_runner.py::test_no_task_thread_or_descriptor_remains``, the interpreter's exit:
    ``crash/test_processes.py``

Without a number: no item fails because of its neighbours, and a worker runs one suspect at a time (``poison``); a runner whose disk is broken stops, and
no other runner does (``stop``); no exception remains unhandled (``loop``).
"""
