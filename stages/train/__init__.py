import abctune.llm.environment  # noqa: F401  (before torch)
