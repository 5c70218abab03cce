"""Load tests of OpenAI-compatible servers: what is asked and when, what came of it, and the load within an SLO."""
