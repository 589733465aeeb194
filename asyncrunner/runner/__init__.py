"""The life of a worker in a process: start, heartbeat, watchdog, retention, stop."""
