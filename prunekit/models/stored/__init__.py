"""A checkpoint's weights where they lie: read one at a time, and run without ever being in memory together."""
