"""Keys in a PKCS#11 token, through a vendor's module (PKCS#11 3.0; python-pkcs11)."""
