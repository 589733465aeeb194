"""The pages: each module reads what one page shows."""
