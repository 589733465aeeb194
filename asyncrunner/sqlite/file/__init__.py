"""Create, open and write the database file, and detect that the file was replaced."""
