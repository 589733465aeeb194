"""Text that people type and read: durations, timestamps, escaping, argument checks, suggestions.

The room also has the names of modules, and the creation of files that appear only when they are complete.
"""
