"""A watch on logs that grow: what it keeps on disk, where it stood, and what it tells."""
