"""What the tests of the sandbox share."""

import subprocess
import sys

from llama_fast.eval.suite.sandbox import Limits

LAYERS = [(), ("namespaces",), ("Landlock",)]
QUICK, SHORT = Limits(seconds=3.0), Limits(seconds=0.7)


def unguarded(program: str) -> str:
    """What the program says without a sandbox: shows that the attempt itself is sound."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stderr
