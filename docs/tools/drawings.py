"""The drawings of docs/how: tiles and memory traffic of each kernel, as SVG.

    python docs/tools/drawings.py        writes docs/how/*.svg

Their colours follow the system where the file is opened by itself, and the page's where it is part
of one (docs/assets/site.css). tests/docs compares the files with what is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attention_drawings import attention, attention_backward, attention_decode
from canvas import Drawing

HOW = Path(__file__).resolve().parents[1] / "how"


def products() -> Drawing:
    """A register tile of C, the panels that make it, and where they wait."""
    d = Drawing(720, 330)
    d.text(20, 24, "C += A B with operands packed in panels (AVX-512, float32)", kind="bold")
    d.box(270, 50, 260, 60, "c", fill=0.08)
    d.text(540, 70, "B: steps of k × columns;", kind="soft")
    d.box(340, 50, 66, 60, "c", fill=0.35)
    d.text(540, 88, "a panel has 48 columns:", kind="soft")
    d.text(540, 104, "3 registers", kind="soft")
    d.box(104, 130, 126, 150, "b", fill=0.08)
    d.box(104, 170, 126, 36, "b", fill=0.25)
    d.box(104, 170, 126, 18, "b", fill=0.35)
    d.text(20, 150, "A: rows × k", kind="soft")
    d.text(20, 176, "a panel has", kind="soft")
    d.text(20, 192, "16 rows", kind="soft")
    d.box(270, 130, 260, 150, "a", fill=0.06)
    d.box(340, 170, 66, 18, "a", fill=0.6)
    d.text(540, 150, "C: in memory", kind="soft")
    d.text(540, 174, "tile of 8 × 48 sums", kind="bold")
    d.text(540, 190, "in 24 registers", kind="soft")
    d.arrow(234, 179, 336, 179, "b")
    d.text(280, 212, "8 numbers of a step, each broadcast", kind="soft")
    d.arrow(373, 112, 373, 166, "c")
    d.paragraph(
        20,
        304,
        """
        256 steps are summed in registers, then added to C. 512 steps of all rows of A are used by
        every panel of B before the next 512: they stay in the L2 cache.
    """,
    )
    return d


def cross_entropy() -> Drawing:
    """The passes over the logits."""
    d = Drawing(720, 400)

    def lane(y: float, title: str, steps: list[tuple[str, str]], note: str) -> None:
        d.text(20, y, title, kind="bold")
        x = 20.0
        for n, (text, colour) in enumerate(steps):
            d.box(x, y + 12, 196, 46, colour, fill=0.18, text=text)
            if n + 1 < len(steps):
                d.arrow(x + 198, y + 35, x + 236, y + 35)
            x += 240
        d.text(20, y + 78, note, kind="soft")

    lane(
        24,
        "cross_entropy, forward",
        [
            ("read a row in blocks\nof 1,024 logits", "c"),
            ("max and Σ exp of the block\nin the L1 cache", "b"),
            ("loss, and lse in float64:\n8 bytes per token", "a"),
        ],
        "memory: one read of the logits; no log-softmax is written",
    )
    lane(
        134,
        "cross_entropy, backward",
        [
            ("read the row again", "c"),
            ("p = exp(x − lse)", "b"),
            ("write the gradient,\nstreaming stores", "a"),
        ],
        "memory: one read and one write of the logits' size",
    )
    lane(
        244,
        "cross_entropy(inplace=True)",
        [
            ("read a row: maximum", "c"),
            ("exponentials and their sum;\nprefetch the next row", "b"),
            ("scale: gradient replaces\nthe row", "a"),
        ],
        "memory: one read and one write in total, one exponential per logit; the backward at most scales it",
    )
    d.box(14, 338, 692, 50, "line")
    d.paragraph(
        26,
        358,
        """
        torch: log-softmax (read, write), loss, then gradient (read, write): the (N,V) size is stored three times,
        as logits, log-probabilities and gradient.
    """,
    )
    return d


def linear_cross_entropy() -> Drawing:
    """Two sweeps over blocks of classes, and where the logits wait between them."""
    d = Drawing(720, 452)
    d.text(20, 24, "linear_cross_entropy: two sweeps over blocks of 480 classes", kind="bold")
    x = 20
    d.text(x, 52, "sweep 1, block by block", kind="bold")
    d.box(x, 64, 96, 120, "b", fill=0.15, text="hidden\nN × E\npacked once")
    d.box(x + 116, 64, 96, 40, "c", fill=0.25, text="W: 480 × E")
    d.text(x + 116, 122, "packed a block", kind="soft")
    d.text(x + 116, 138, "ahead, by the", kind="soft")
    d.text(x + 116, 154, "same threads", kind="soft")
    d.arrow(x + 216, 84, x + 246, 84)
    d.box(x + 250, 64, 106, 40, "a", fill=0.3, text="logits\n192 × 480")
    d.text(x + 250, 122, "a work item's:", kind="soft")
    d.text(x + 250, 138, "max, Σ exp", kind="soft")
    d.text(x + 250, 154, "of each row", kind="soft")
    d.arrow(x + 360, 84, x + 400, 84)
    d.box(x + 404, 52, 276, 134, "d", fill=0.1)
    d.text(x + 414, 70, "memory of the gradient of W (V, E)", kind="bold")
    for n in range(6):
        d.box(x + 414, 80 + n * 16, 256, 14, "d", fill=0.35 if n < 2 else 0.12)
    d.text(x + 542, 92, "logits of block 0", "middle", "soft")
    d.text(x + 542, 108, "logits of block 1", "middle", "soft")
    d.text(x + 542, 172, "…", "middle", "soft")
    d.text(20, 216, "then: lse and loss of each row from the blocks' sums", kind="soft")
    d.text(x, 250, "sweep 2, block by block", kind="bold")
    d.box(x, 262, 150, 46, "d", fill=0.25, text="stored logits; the rest\nis recomputed")
    d.arrow(x + 154, 285, x + 184, 285)
    d.box(x + 188, 262, 150, 46, "a", fill=0.3, text="G = p − target\nin place")
    d.arrow(x + 342, 276, x + 384, 268)
    d.arrow(x + 342, 294, x + 384, 318)
    d.box(x + 388, 246, 292, 36, "b", fill=0.15, text="gradient of hidden += G W, in float32")
    d.box(
        x + 388,
        300,
        292,
        46,
        "d",
        fill=0.35,
        text="gradient of W, block b = Gᵀ hidden:\noverwrites the logits of b, already used",
    )
    d.paragraph(
        20,
        380,
        """
        Room in a block of the gradient of W: E rows of float32 logits, or 4/3 E rows of twelve-bit logits
        with a bfloat16 gradient. More rows: working memory up to a tenth of what torch needs (16 MiB are
        always allowed, 512 MiB at most); then chunks of rows, or recomputed logits.
    """,
    )
    d.text(
        20,
        440,
        "Products: 3 for loss and both gradients if all logits are stored, up to 4 if none are.",
        kind="soft",
    )
    return d


def row_ops() -> Drawing:
    """What the row ops read, keep and write."""
    d = Drawing(720, 372)

    def lane(y: float, name: str, reads: str, work: str, writes: str, backward: str) -> None:
        d.text(20, y, name, kind="bold")
        d.box(20, y + 10, 190, 46, "c", fill=0.15, text=reads)
        d.arrow(214, y + 33, 248, y + 33)
        d.box(252, y + 10, 230, 46, "b", fill=0.15, text=work)
        d.arrow(486, y + 33, 520, y + 33)
        d.box(524, y + 10, 176, 46, "a", fill=0.15, text=writes)
        d.text(20, y + 76, backward, kind="soft")

    lane(
        24,
        "rms_norm",
        "input and residual,\nonce",
        "x = input + residual, kept in\na cache; Σ x² → r = 1/rms",
        "y = x r w, and x;\nr: one number per row",
        "backward: reads dy and x once, writes dx; the weight's gradient is summed in at most 128 blocks of rows",
    )
    lane(
        134,
        "rope",
        "q and k, once;\ncos and sin stay cached",
        "(a, b) → (a cos − b sin,\nb cos + a sin)",
        "q′ and k′ in the layout\nof q and k",
        "backward: the same kernel with the opposite angle; only cos and sin are saved",
    )
    lane(
        244,
        "swiglu",
        "gate and up, once",
        "gate / (1 + e^−gate) · up",
        "out",
        "backward: reads gate, up and d(out) once, writes both gradients; only the inputs are saved",
    )
    d.paragraph(
        20,
        350,
        """
        Outputs of 16 MiB and more are written with streaming stores; rms_norm prefetches the next row
        while it scales the current one.
    """,
        "soft",
    )
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "products": products,
    "attention": attention,
    "attention_backward": attention_backward,
    "attention_decode": attention_decode,
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "row_ops": row_ops,
}


def main() -> None:
    """Write all of them."""
    for name, draw in DRAWINGS.items():
        (HOW / f"{name}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main()
