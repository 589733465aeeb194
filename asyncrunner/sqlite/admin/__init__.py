"""Serve operators of a store in a SQLite file: queries and changes."""
