"""The process that hosts one store: its module or keychain, its PIN, its keys."""
