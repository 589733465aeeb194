"""The command as a process: its standard streams, its signals, its log, and its place in the background."""
