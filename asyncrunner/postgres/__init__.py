"""Store items in a schema of a PostgreSQL server, which the workers of many machines share."""
