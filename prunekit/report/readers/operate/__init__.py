"""Readers of what proves and watches a smaller model: load at the server, the user's own records, request logs."""
