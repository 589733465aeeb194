"""Run the handlers of a run in child processes: what the parent passes to them, and what they run."""
