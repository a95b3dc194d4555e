"""The `llama-fast` command line: one file per command; `command.py` defines what a command is."""
