"""Lock files beside the database: they order its writers, prove that a worker lives, and note which items it runs."""
