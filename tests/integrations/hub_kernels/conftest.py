"""These tests need the Hub's `kernels` package, in a version that transformers accepts.

`make test-kernels` installs such a pair and runs them; elsewhere they are not collected.
"""

try:
    from transformers.utils import is_kernels_available
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    collect_ignore_glob = [] if is_kernels_available() else ["test_*.py"]
