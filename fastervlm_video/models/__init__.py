"""One adapter per architecture: how to find, load and lay out its two halves."""
