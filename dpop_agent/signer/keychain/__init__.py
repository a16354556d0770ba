"""Keys and PINs in the operating system's keychain."""
