"""The contracts of a store, and the values that its verbs take and return. No contract names a database."""
