"""The whole runner in a simulation: worker, heartbeat, watchdog, retries, several processes on one store, in no time.

The loop's time is a number that leaps (``loop``); the store is the real one, statements, groups and all, on a database in memory, with
an actor in the place of its thread and faults where SQLite has them (``disk``); the engine's periods are stretched (``stretch``); a
process is a runner with a handler and callers, and can be killed between any two callbacks (``process``); a scenario says what is done to
whom, and when (``scenario``, ``world``); the ledger holds every commit against what it allows (``ledger``). Everything that is drawn
comes from the scenario's seed, so a scenario always has the same history::

    python -m tests.simulation --hours 1000      # new scenarios, one after the other
    python -m tests.simulation --seed 7          # one of them again, with its history
    python -m tests.simulation --replay JSON     # the one that a failing test printed

A "process" here is a life in one interpreter: SIGKILL means that no callback of it ever runs again, SIGSTOP that none runs for a while, a
blocked loop that its store's thread goes on without it.

Where the invariants are checked, by their numbers:

1   one row a key, counts add up: ``Ledger.submitted``, ``committed`` and ``_check_counts``, after each commit
2   what is done stays done unless a person asks: ``Ledger._moved``, for every row that a commit changed
3   result and error carry the number of the claim that made them: ``Ledger._ended_claim``, ``_check_failed``, ``acknowledged``
4   one live claim an item, numbers never reused, processing only by a worker: ``Ledger.started``, ``_claimed``, ``_check_whole``
5   every attempt is charged, refunded and bounded, to the one: ``Ledger._moved``, ``_claimed``, ``_ended_claim``
6   acknowledged is durable: ``Ledger.submitted`` and ``acknowledged``, at that very moment
7   completed is not started again: ``Ledger.started``, and ``World._resume``
8   all comes to an end once the faults do, in bounded time: ``World._all_done``
9   who lives, holds its lock and beats is not robbed: ``Ledger._check_robbed``
10  what a dead process held is free within one look of a healthy one: ``World.check_recovered_soon``
11  no retry before its time, no delay beyond its cap: ``Ledger._left_pending`` and ``_check_delay``
12  kept counts equal recounted ones: ``Ledger._check_counts``, after every commit that may have changed items
13  handlers and what is held are bounded: ``Ledger.started`` and ``_check_whole``
14  many items in one call are there whole or not at all, one that is refused fails alone: ``Ledger._check_whole`` and ``refused``
15  whoever is cancelled, no transaction is left open: ``Disk.idle``, after each call of a store's thread
16  the file is intact: ``World._check_file``, for what is in memory; for real files ``crash/history.py``, which every kill is held against
17  done work that is resumed runs nothing and changes nothing: ``World._resume``
18  no task and no lock is left: ``Process._check_clean``; threads and descriptors: ``test_runner.py::test_nothing_is_left_behind``, the interpreter's exit:
    ``crash/test_processes.py``

And without a number: no innocent item fails because of its neighbours, and a suspect runs alone (``poison``); a runner whose disk is broken
stops, and no other (``stop``); nothing is raised where nobody hears it (``loop``).
"""
