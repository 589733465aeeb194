"""Run a worker in a process: start, heartbeat, watchdog, retention and stop."""
