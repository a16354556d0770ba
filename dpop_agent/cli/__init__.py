"""The command line: one module per group of verbs, and only the one at hand is loaded."""
