"""The operators' half of the store: queries, changes, backups, checks and repairs."""
