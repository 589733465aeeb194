"""The store in one SQLite file, which many processes may share."""
