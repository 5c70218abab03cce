"""Request logs of servers: one JSON object a line, in prunekit's names or OpenTelemetry's, read in bounded memory."""
