"""The `llama-fast` command line: one file a command; see `command.py` for what a command is."""
