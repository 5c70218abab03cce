"""The gated FFN."""
