"""Read the items of a run from their source, and remember by number which items the source gave."""
