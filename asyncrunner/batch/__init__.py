"""Run a finite batch: read a source, run every item, report the outcomes."""
