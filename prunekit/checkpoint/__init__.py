"""From a Plan to a Hugging Face folder."""
