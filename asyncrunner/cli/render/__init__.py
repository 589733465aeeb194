"""Format the output of the commands as text: status, summaries, dry runs, tables."""
