"""What the questions about PostgreSQL share: a server, its CPU time, plain asyncpg, another package, and our own runs."""
