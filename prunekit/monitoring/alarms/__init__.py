"""Telling of alarms: a command, a webhook, a text file for Prometheus."""
