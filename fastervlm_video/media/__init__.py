"""From encoded video to a few uint8 frames with their timestamps."""
