"""The SQL of the store: the scripts of the schema and its functions, and the statements by topic."""
