"""How the files of a model folder are called that belong to its tokenizer and generation defaults."""

from __future__ import annotations

# Named templates, as `<name>.jinja`.
TEMPLATES = "additional_chat_templates"
# Data only; code is never copied.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
