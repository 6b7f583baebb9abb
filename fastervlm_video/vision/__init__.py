"""The vision half: frames in, kept tokens out."""
