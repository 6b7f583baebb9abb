"""The language stage: prompt layout, engine interface and engines."""
