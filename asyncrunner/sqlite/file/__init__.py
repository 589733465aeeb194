"""Create, open, lock and write the database file, and detect that the file was replaced."""
