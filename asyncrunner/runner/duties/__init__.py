"""The duties of a runner that run in the background while its worker runs handlers."""
