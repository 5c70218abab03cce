"""When a rise is more than chance: CUSUM limits from false alarms a year, and betting against a bound."""
