"""Several sizes of one model, measured before any is written: what `prunekit candidates` does."""
