"""Writing a pruned model in the formats that servers and devices run; imported as ``prunekit.export``."""
