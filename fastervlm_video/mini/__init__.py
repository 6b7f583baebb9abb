"""A small Video-LLaVA made on the spot, and scenes to ask it about."""
