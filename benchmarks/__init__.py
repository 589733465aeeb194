"""Benchmarks of speed, memory and latency. Each module answers one question as a command; ``python -m benchmarks`` runs all."""
