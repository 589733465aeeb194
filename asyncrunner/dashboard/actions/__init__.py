"""The actions: each changes batches, items or workers for a visitor, and is logged with the visitor's name."""
