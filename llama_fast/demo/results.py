"""The results of one run of the demo."""

from dataclasses import dataclass, field

from llama_fast.demo.answer import EXPECTED, Answer, Logits
from llama_fast.demo.finetune import Comparison
from llama_fast.demo.kernels import Check
from llama_fast.eval.multiple_choice import Score

__all__ = ["Results", "fastest"]


@dataclass
class Results:
    """The results of each part.

    Attributes:
        command: the command line that repeats the run.
        facts: result of :func:`llama_fast.info.collect`.
        checks: checks of every kernel.
        answer, logits: answer and logits of the model.
        training: both sides of the fine-tuning.
        scores: scores of the tasks.
        seconds: name of each part -> its wall time.
    """

    command: str
    facts: dict
    checks: list[Check]
    answer: Answer
    logits: Logits
    training: Comparison
    scores: list[Score]
    seconds: dict[str, float] = field(default_factory=dict)

    def failures(self) -> list[str]:
        """A line for each failed check; the demo's exit code is nonzero if there are any."""
        lines = [
            f"{c.op} ({c.what}) on {c.backend} in {c.dtype} is less exact than PyTorch"
            for c in self.checks
            if not c.ok
        ]
        if not self.answer.text.startswith(EXPECTED):
            lines.append(f"the model says “{self.answer.text}” instead of “{EXPECTED}”")
        if not self.logits.ok:
            lines.append("the model's logits deviate from float64 more than the reference's do")
        return lines


def fastest(checks: list[Check]) -> list[Check]:
    """For each op, the checks on the backend that "auto" selects: the first available one."""
    first: dict[str, str] = {}
    for check in checks:
        first.setdefault(check.op, check.backend)
    return [check for check in checks if first[check.op] == check.backend]
