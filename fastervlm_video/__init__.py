"""FasterVLM for video: prune visual tokens by the vision encoder's own [CLS] attention, once, and ask many times."""
