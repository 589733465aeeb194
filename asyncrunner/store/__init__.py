"""The contracts of a store, and the values that pass through them; no database is named here."""
