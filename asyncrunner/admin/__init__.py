"""The operator API: inspect, pause, retry, export, purge and recover batches."""
