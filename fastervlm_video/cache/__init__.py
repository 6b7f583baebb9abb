"""The token cache: an optimisation that never fails a request."""
