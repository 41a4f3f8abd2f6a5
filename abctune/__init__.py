"""abctune: fine-tune a chat LLM several ways and know which way is better."""

__version__ = "0.2.0"
