"""How to choose benchmarks: what each measures and costs, what it tells, and which suffice.

| module | what |
| --- | --- |
| `cards.py` | what is known of each benchmark, and the scores of the paper's models |
| `power.py` | the smallest difference that a number of questions can show, and the reverse |
| `redundancy.py` | rank correlations over the paper's models; which few predict the mean of all |
| `contamination.py` | what `llama-fast data check` found |
| `cost.py` | tokens and seconds a question takes |
| `purposes.py` | the benchmarks for a purpose, and why |
| `plan.py` | how many questions of each fit into a time |
| `estimate.py` | the score of the whole suite from some of its questions, with an interval |
"""
