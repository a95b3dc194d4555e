"""The guided tour: the whole stack on a real model and real questions.

``kernels`` checks every op, ``answer`` generates text, ``finetune`` trains the model beside stock
PyTorch, ``score`` scores benchmark questions, and ``report`` writes the results. The command
``llama-fast demo`` runs them in this order; nothing else imports this package.
"""
