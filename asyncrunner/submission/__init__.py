"""Submit items and wait for their results: handlers, handles and clients."""
