"""Checkpoints for vLLM, and the plugin that lets it load them."""
