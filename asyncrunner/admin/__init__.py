"""The operators' half: inspect, pause, retry, export, purge and recover batches."""
