"""The drawing of answers as text: status, summaries, dry runs, tables."""
