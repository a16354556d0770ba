"""The daemon: parses, decides, records. It holds no key and no PIN, and loads no PKCS#11 module."""
