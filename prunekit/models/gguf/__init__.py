"""A GGUF file as an ordinary model folder."""
