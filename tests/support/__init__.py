"""What tests share: tiny models, the command line, references computed the slow way."""
