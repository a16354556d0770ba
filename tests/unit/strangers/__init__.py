"""Exchanges as strangers paste them, which `explain` was held against before it had seen them."""
