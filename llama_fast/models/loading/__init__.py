"""Loads a model and its tokenizer from a path or a name.

| source                               | file              |
|--------------------------------------|-------------------|
| checkpoint file or folder            | `model.py`        |
| name of a repository on the hub      | `hub.py`          |
| folder of a training run             | `training_run.py` |
| tokenizer given beside the model     | `tokenizer.py`    |

Models of architectures other than Llama are loaded by :mod:`llama_fast.integrations.any_model`.
"""

from .hub import locate, locate_config
from .model import check_vocabulary, load_model, read_model
from .tokenizer import as_tokenizer
from .training_run import is_run, load_run

__all__ = [
    "as_tokenizer",
    "check_vocabulary",
    "is_run",
    "load_model",
    "load_run",
    "locate",
    "locate_config",
    "read_model",
]
