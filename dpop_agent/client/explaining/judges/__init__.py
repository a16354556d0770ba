"""The causes: one function each, which says what of an exchange speaks for it, and how strongly."""
