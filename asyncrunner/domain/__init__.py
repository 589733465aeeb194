"""Pure values and decisions: items, legal moves, outcomes, retries, limits, options, the clock."""
