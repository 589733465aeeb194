"""Benchmarks of speed, memory and latency: the questions, and the harness that measures and reports them."""
