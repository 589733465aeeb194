"""The worker: its pump settles outcomes and claims items, and its slots run the handlers."""
