"""The tokenizer of a model folder: its files, whether it is safe to load, whether two are alike."""
