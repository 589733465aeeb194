"""The public names: what the package exports, which modules are public, and what a Runner shows."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import asyncrunner
from asyncrunner import Runner

EXPORTED = [
    "AsyncRunnerError",
    "Attempt",
    "AttemptError",
    "AttemptFilter",
    "AttemptTimeout",
    "BatchFailed",
    "BatchNotFound",
    "BatchReport",
    "BlockingClient",
    "BlockingHandle",
    "CheckpointNotStorable",
    "ChildDied",
    "ClaimLost",
    "Client",
    "ConfigurationError",
    "Control",
    "Counts",
    "Fail",
    "FailureShare",
    "Handle",
    "Handler",
    "HandlerCancelled",
    "HandlerUnresponsive",
    "History",
    "HistoryPoint",
    "InvalidKey",
    "ItemCancelled",
    "ItemError",
    "ItemFailed",
    "ItemNotFound",
    "ItemNotStorable",
    "ItemOutcome",
    "ItemUnfinished",
    "KeyConflict",
    "Later",
    "NotAStore",
    "PayloadUnreadable",
    "Plan",
    "ProgressUpdate",
    "ResultNotStorable",
    "Retry",
    "RetryPolicy",
    "Runner",
    "SchemaTooNew",
    "SourceCancelled",
    "Status",
    "StoreClosed",
    "StoreError",
    "StoreNotFound",
    "StoreReplaced",
    "StoreUnavailable",
    "WorkerLost",
    "current_attempt",
    "plan_batch",
    "run_batch",
    "run_batch_sync",
    "stream_batch",
]

PUBLIC_MODULES = ("errors", "events", "otel", "prometheus", "pytest_plugin", "sentry", "testing")


def test_the_package_exports_exactly_these_names() -> None:
    assert sorted(asyncrunner.__all__) == sorted(EXPORTED)
    assert [name for name in EXPORTED if not hasattr(asyncrunner, name)] == []


def test_only_the_public_modules_the_backends_and_the_rooms_are_at_the_top() -> None:
    modules = {each.name for each in pkgutil.iter_modules(asyncrunner.__path__) if not each.ispkg}
    assert modules == {*PUBLIC_MODULES, "__main__", "backends"}


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_a_public_module_names_what_is_public(name: str) -> None:
    module = importlib.import_module(f"asyncrunner.{name}")
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


def test_a_runner_shows_only_what_users_need() -> None:
    runner = Runner("jobs.db")
    shown = {name for name in dir(runner) if not name.startswith("_")}
    assert shown == {
        "handler", "start", "stop", "request_stop", "request_cancel", "lifespan", "around", "on", "handlers", "db", "failure",
    }  # fmt: skip
    assert runner.db == "jobs.db"


def test_the_options_of_a_runner_keep_their_names() -> None:
    assert list(inspect.signature(Runner).parameters) == [
        "db", "concurrency", "durability", "stale_after", "shutdown_timeout", "retention", "setup", "clock",
        "store",
    ]  # fmt: skip
