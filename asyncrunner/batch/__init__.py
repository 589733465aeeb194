"""A finite run: read a source, run every item, report the outcomes."""
