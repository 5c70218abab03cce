"""Whether an answer is right: kinds of checks, and where they are run."""
