"""The guided tour: one command that runs the whole stack on a real model and real questions.

``fetch`` brings in the model and the questions, ``kernels`` checks every op, ``answer`` lets the
model speak, ``finetune`` trains it next to stock PyTorch, ``score`` asks it benchmark questions,
and ``report`` writes down what came out. ``llama-fast demo`` (``llama_fast/cli/demo.py``) runs them
in this order.
"""
