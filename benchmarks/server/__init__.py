"""Dense and pruned models in vLLM: its engine alone, and its server under load."""
