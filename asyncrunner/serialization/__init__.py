"""Convert values to JSON and back, and errors to data; identify items and causes of failure."""
