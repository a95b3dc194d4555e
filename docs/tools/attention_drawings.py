"""The drawings of the attention kernels; drawings.py writes them."""

from __future__ import annotations

from canvas import Drawing


def attention() -> Drawing:
    """The causal score matrix of one head in tiles, and what happens to one block of scores."""
    d = Drawing(720, 470)
    d.text(
        20,
        24,
        "Scores of one head: tiles of 96 queries × 128 keys, used in blocks of 24 rows",
        kind="bold",
    )
    x0, y0, w, h = 76, 60, 62, 48
    for r in range(4):
        for c in range(4):
            first, last = r * 96, r * 96 + 95
            if c * 128 > last:
                d.box(x0 + c * w, y0 + r * h, w, h, "line", dashed=True)
                continue
            d.box(x0 + c * w, y0 + r * h, w, h, "line")
            for b in range(4):
                seen = min(128, first + b * 24 + 24 - c * 128)
                if seen > 0:
                    d.box(
                        x0 + c * w,
                        y0 + r * h + b * h / 4,
                        w * seen / 128,
                        h / 4,
                        "a",
                        fill=0.35,
                        radius=0,
                    )
    d.box(x0 + w, y0 + 2 * h + h / 2, w, h / 4, "b", fill=0.8, radius=0)
    d.text(x0, 48, "keys →", kind="soft")
    d.text(20, y0 + 20, "queries", kind="soft")
    d.text(20, y0 + 36, "↓", kind="soft")
    d.text(x0, y0 + 4 * h + 22, "dashed: not visited; a block stops", kind="soft")
    d.text(x0, y0 + 4 * h + 38, "at the last key that its rows see", kind="soft")
    d.arrow(x0 + 2 * w + 4, y0 + 2 * h + 30, 366, 128, "b")
    d.box(370, 60, 330, 240, "line", fill=0.0)
    d.text(382, 80, "one block, in the L1 cache", kind="bold")
    d.box(384, 92, 86, 34, "c", fill=0.2, text="q: 24 × D")
    d.box(512, 92, 86, 34, "c", fill=0.2, text="kᵀ: D × 128")
    d.text(491, 114, "×", "middle")
    d.arrow(491, 130, 491, 150)
    d.box(420, 154, 142, 34, "a", fill=0.3, text="scores 24 × 128")
    d.text(572, 168, "scale, softcap,", kind="soft")
    d.text(572, 184, "bias, mask", kind="soft")
    d.arrow(491, 190, 491, 210)
    d.box(420, 214, 142, 34, "a", fill=0.3, text="exp(score − max)")
    d.text(572, 228, "rescale the sums if", kind="soft")
    d.text(572, 244, "max grew by > 5.5", kind="soft")
    d.arrow(491, 250, 491, 266)
    d.text(382, 284, "× v: 128 × Dv, added to the sums 96 × Dv")
    d.text(
        20,
        336,
        "Memory traffic of a work item (a key head of a sequence, and a share of its query tiles):",
        kind="bold",
    )
    d.box(20, 352, 150, 46, "c", fill=0.15, text="read k, v once,\npack in panels")
    d.arrow(174, 375, 216, 375)
    d.box(
        220,
        352,
        200,
        46,
        "b",
        fill=0.15,
        text="for every query head of the\ngroup: read q tile by tile",
    )
    d.arrow(424, 375, 466, 375)
    d.box(
        470,
        352,
        230,
        46,
        "a",
        fill=0.15,
        text="write out, and lse in two\nnumbers per row; no scores",
    )
    d.paragraph(
        20,
        430,
        """
        The query heads of a group share the packed keys and values. One thread sums each row in the order
        of its keys, so the result does not depend on the number of threads.
    """,
        "soft",
    )
    return d


def attention_backward() -> Drawing:
    """The sweep of the backward pass and its five products."""
    d = Drawing(720, 330)
    d.text(
        20,
        24,
        "Backward: one sweep; outer loop over key tiles, inner loop over query tiles",
        kind="bold",
    )
    x0, y0, w, h = 76, 60, 52, 40
    for r in range(4):
        for c in range(4):
            seen = c * 128 <= r * 96 + 95
            d.box(
                x0 + c * w,
                y0 + r * h,
                w,
                h,
                "a" if seen else "line",
                fill=0.2 if seen else 0,
                dashed=not seen,
            )
    d.box(x0 + w, y0 + 2 * h, w, h, "b", fill=0.6)
    d.arrow(x0 + 1.5 * w, y0 + h + 6, x0 + 1.5 * w, y0 + 2 * h - 2, "b")
    d.text(x0, 50, "keys →", kind="soft")
    d.text(20, y0 + 20, "queries", kind="soft")
    d.text(x0, y0 + 4 * h + 22, "a column is finished before the next", kind="soft")
    d.text(330, 64, "of one tile, in blocks of 24 rows", kind="bold")
    rows = [
        ("1", "S = q kᵀ", "recomputed; then P = exp(S − lse)"),
        ("2", "dP = dO vᵀ", "then dS = P (dP − delta)"),
        ("3", "dQ += dS k", "the sums of all query tiles are kept"),
        ("4", "dV += Pᵀ dO", "of the whole tile"),
        ("5", "dK += dSᵀ q", "of the whole tile"),
    ]
    for n, (number, product, note) in enumerate(rows):
        y = 76 + n * 34
        d.box(330, y, 26, 26, "c", fill=0.2, text=number)
        d.text(366, y + 18, product, kind="bold")
        d.text(470, y + 18, note, kind="soft")
    d.paragraph(
        20,
        278,
        """
        If there are fewer key heads than threads, some work items compute dK and dV of a part of the
        keys (products 1, 2, 4, 5) and others dQ of a part of the queries (1, 2, 3): 7 products per
        tile, summed in the same order. There are no atomic additions.
    """,
    )
    return d


def attention_decode() -> Drawing:
    """Chunks of keys over the threads, and their merge."""
    d = Drawing(720, 330)
    d.text(20, 24, "Decoding: keys and values are read once, in place", kind="bold")
    for n, (name, chunks, rest) in enumerate(
        (("sequence 0", 5, 0.6), ("sequence 1", 1, 0.35), ("sequence 2", 2, 1.0))
    ):
        y = 62 + n * 46
        d.text(20, y + 20, name)
        for c in range(chunks):
            share = rest if c + 1 == chunks else 1.0
            d.box(110 + c * 84, y, 80 * share, 30, "c", fill=0.25)
            d.text(110 + c * 84 + 4, y + 19, "512 keys" if share == 1 else "rest", kind="soft")
    d.text(110, 50, "cache of one key head; a chunk is a work item", kind="soft")
    d.arrow(536, 120, 566, 120)
    d.box(
        570,
        74,
        130,
        92,
        "a",
        fill=0.2,
        text="each item stores\nfor each row:\nmax, Σ exp,\nΣ exp · value",
    )
    d.arrow(635, 170, 635, 200)
    d.box(520, 204, 180, 34, "a", fill=0.35, text="merge in order of keys")
    d.box(20, 204, 460, 76, "line")
    d.paragraph(
        32,
        224,
        """
        inside an item: up to 8 rows (queries × heads of the group), in
        steps of 128 keys. Values are prefetched while scores are computed,
        the next keys while values are added. Nothing is packed.
    """,
        "soft",
    )
    d.paragraph(
        20,
        306,
        """
        The number of chunks of a sequence depends only on its own keys, so a long sequence among short
        ones takes no extra time. In a paged cache, a group of 16 keys is looked up in the page table.
    """,
        "soft",
    )
    return d
