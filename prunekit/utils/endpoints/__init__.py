"""Clients of OpenAI-compatible servers: what is asked, what comes back and when, and what a server tells of itself."""
