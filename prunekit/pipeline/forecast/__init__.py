"""What planning and pruning will take, before they begin: minutes, memory and disk."""
