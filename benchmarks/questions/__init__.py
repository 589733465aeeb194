"""One question in each module, with the function that measures its answer: ``BENCHMARK``."""
