"""Other packages that read the file or watch the runner, each tested with the real package."""
