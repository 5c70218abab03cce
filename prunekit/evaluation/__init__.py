"""How good a model still is: perplexity, continuations, tasks."""
