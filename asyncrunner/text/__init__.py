"""Text that people type and read: durations, timestamps, escaping, argument checks, suggestions; and new files."""
