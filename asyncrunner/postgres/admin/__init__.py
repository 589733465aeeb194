"""Serve operators of a store on a PostgreSQL server: queries and changes."""
