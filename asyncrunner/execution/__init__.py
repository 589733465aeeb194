"""Run one claim to its outcome: the handler, its timeout and its cancellation."""
