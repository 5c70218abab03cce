"""bench.py of an export folder: what the model costs on the box that it runs on, without prunekit."""
