"""`python -m llama_fast` is `llama-fast`."""

import sys

from llama_fast.cli.main import main

sys.exit(main())
