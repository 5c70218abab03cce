"""Who is asked, and what was answered: local models, endpoints, and the file that keeps answers."""
