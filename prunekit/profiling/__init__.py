"""How fast a model is, how large, at what cost."""
