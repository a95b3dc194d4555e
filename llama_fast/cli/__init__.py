"""The `llama-fast` command line: one file a command, listed in `llama_fast.cli.main`."""
