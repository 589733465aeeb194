"""Pure values and decisions: items and their legal moves, outcomes, retries, limits, options, the clock. No I/O."""
