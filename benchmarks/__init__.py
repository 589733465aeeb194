"""How fast, how small, how soon: one question a module, each a command of its own. ``python -m benchmarks`` runs all."""
