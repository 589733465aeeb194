"""Export items: as pages of records, and as files in several formats."""
