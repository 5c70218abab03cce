"""What proves and watches a smaller model: load at the server, the company's own records, request logs."""
