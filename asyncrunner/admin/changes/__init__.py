"""Change a file for an operator: its items, the controls of its batches, and its workers."""
