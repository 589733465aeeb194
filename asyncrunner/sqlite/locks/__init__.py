"""Lock files beside the database: they order the writers, prove that a worker lives or is dead, and record the items it runs."""
