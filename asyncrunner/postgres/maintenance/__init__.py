"""Check a store on a PostgreSQL server, repair it, and name the server's own commands for what a file needs."""
