"""The values and the pure decisions: items, legal moves, outcomes, retries, limits and options; and the clock."""
