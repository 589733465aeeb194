"""Example handlers and services. ``stdlib`` runs without any setup: its input is on every machine."""
