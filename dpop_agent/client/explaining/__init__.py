"""What went wrong in an HTTP exchange with DPoP, from the exchange itself."""
