"""What can be wrong with an agent and what it needs, each with its mend: `doctor`, `config check`.

Nothing here logs in, and nothing is changed.
"""
