"""How much memory, time and disk prunekit's commands take on models of the size that people have."""
