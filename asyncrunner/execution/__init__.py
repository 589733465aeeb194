"""Run one claim to its outcome: the handler, its timeout, its cancellation."""
