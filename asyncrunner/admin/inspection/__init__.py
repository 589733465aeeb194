"""Read a file for an operator: its batches, items, causes of failure and workers."""
