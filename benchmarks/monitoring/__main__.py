"""Placeholder until the simulation is here."""
