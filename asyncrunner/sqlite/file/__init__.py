"""The database file: create, open, lock, write in groups, and notice when it is replaced."""
