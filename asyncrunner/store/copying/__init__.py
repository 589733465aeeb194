"""Copy batches from one store to another: the rows, the order in which they are copied, and the contract of both stores."""
