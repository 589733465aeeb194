"""Serve operators of a store in a SQLite file: queries, changes, backups, checks and repairs."""
