"""Run the handlers in child processes: start them, replace those that die, and end them with their parent."""
