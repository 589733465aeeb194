"""The decisions that every store makes in the same way, without SQL: conflicts of keys, losses, walks of a purge, rates."""
