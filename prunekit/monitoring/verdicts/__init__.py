"""From signals to what should be done, in plain sentences."""
