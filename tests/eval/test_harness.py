"""The engine as a model of the harness, beside the harness's own model of the same weights."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

import llama_fast
from llama_fast.eval.harness import HarnessModel
from llama_fast.eval.request_cache import RequestCache
from tests.eval.harness_tasks import best, huggingface_folder, instances
from tests.paths import REPOSITORY, data_file, smollm2

# Two float32 ways of adding up a few dozen log-probabilities of 49152 classes each.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = llama_fast.models.load(smollm2(), dtype=torch.float32)
    return huggingface_folder(model, tokenizer, tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> HFLM:
    return HFLM(
        pretrained=str(folder), dtype="float32", batch_size=8, softmax_dtype="float32", device="cpu"
    )


@pytest.fixture(scope="module")
def ours(folder: Path) -> HarnessModel:
    return HarnessModel(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def patched(theirs: HFLM) -> Iterator[HarnessModel]:
    """The harness's own model, with our kernels in it."""
    model = theirs.model
    llama_fast.patch(model)
    yield HarnessModel(model, tokenizer=theirs.tokenizer)
    llama_fast.unpatch(model)


@pytest.fixture(scope="module")
def answers(theirs: HFLM) -> dict[str, tuple[list[Instance], list[tuple[float, bool]]]]:
    found = {}
    for task, limit in (
        ("hellaswag", 4),
        ("arc_easy", 8),
        ("winogrande", 8),  # the options stand in the contexts, one ending for both
        ("mmlu_5shot_anatomy", 1),  # options of one token
        ("openbookqa_ratio", 4),  # the options after "Answer:", too
    ):
        requests = instances(task, limit)
        found[task] = requests, theirs.loglikelihood(requests, disable_tqdm=True)
    return found


@pytest.mark.slow
def test_scores_are_those_of_the_harness(
    answers: dict[str, Any], ours: HarnessModel, patched: HarnessModel
) -> None:
    # The patched model's head and attention are the same for all tasks.
    sides = [(ours, task) for task in answers] + [(patched, "arc_easy")]
    for model, task in sides:
        requests, expected = answers[task]
        found = model.loglikelihood(requests)
        assert best(found, requests) == best(expected, requests), task
        assert [a[1] for a in found] == [b[1] for b in expected], task
        for a, b in zip(found, expected, strict=True):
            assert a[0] == pytest.approx(b[0], rel=ROUNDING, abs=ROUNDING), task


@pytest.mark.slow
def test_texts_are_those_of_the_harness(theirs: HFLM, ours: HarnessModel) -> None:
    """Greedy, stopped by strings, by the end token, and by length."""
    requests = [deepcopy(r) for r in instances("nq_open_5shot", 5)]
    for r in requests:
        r.arguments = (r.args[0], {**r.args[1], "max_gen_toks": 24})
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests) == expected


def test_rolling_windows_are_those_of_the_harness(theirs: HFLM, ours: HarnessModel) -> None:
    text = data_file("corpora/tinyshakespeare.txt").read_text()[:1500]
    rolling = [Instance("loglikelihood_rolling", {}, (text[i:],), 0, ("t", i, 1)) for i in (0, 700)]
    short = HarnessModel(ours.model, ours.words, max_length=128)
    theirs._max_length = 128
    try:
        # One at a time: in batches the harness 0.4.13 mixes up windows of different texts.
        expected = [theirs.loglikelihood_rolling([r], disable_tqdm=True)[0] for r in rolling]
    finally:
        theirs._max_length = None
    assert short.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=ROUNDING)


def test_long_contexts_are_cut_as_in_the_harness_and_counted(
    theirs: HFLM, ours: HarnessModel
) -> None:
    requests = instances("arc_easy", 2)
    short = HarnessModel(ours.model, ours.words, max_length=24)
    theirs._max_length = 24
    try:
        expected = theirs.loglikelihood(requests, disable_tqdm=True)
    finally:
        theirs._max_length = None
    found = short.loglikelihood(requests)
    assert [a[0] for a in found] == pytest.approx([b[0] for b in expected], rel=ROUNDING)
    lengths = [len(short.tok_encode(r.args[0] + r.args[1])) for r in requests]
    assert 0 < short.truncated == sum(n > 25 for n in lengths)


def test_chats_are_those_of_the_harness(theirs: HFLM, ours: HarnessModel) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi <|im_end|>"},
    ]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    chat.append({"role": "assistant", "content": "The answer is"})
    assert ours.apply_chat_template(chat, False) == theirs.apply_chat_template(chat, False)


@pytest.mark.parametrize("text", ["", " ", "a", "<|im_start|>user\nhé 12 345\n", "\n\n x", "🦙 ok"])
def test_tokens_are_those_of_the_harness(theirs: HFLM, ours: HarnessModel, text: str) -> None:
    assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert ours.eot_token_id == theirs.eot_token_id
    assert ours.prefix_token_id == theirs.prefix_token_id


def test_progress_counts_questions(ours: HarnessModel) -> None:
    said: list[tuple[str, int]] = []
    ours.progress = lambda task, questions: said.append((task, questions))
    ours.loglikelihood(instances("arc_easy", 7))
    assert said == [("arc_easy", 1)] * 7


# --- what other models of transformers are served ----------------------------------------------


def byte_config() -> llama_fast.models.LlamaConfig:
    return dataclasses.replace(llama_fast.models.LlamaConfig.preset("debug"), vocab_size=257)


def tiny(kind: str, **changes: Any) -> torch.nn.Module:
    import transformers

    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
             "max_position_embeddings": 512}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **changes})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma3_text", {"sliding_window": 8, "query_pre_attn_scalar": 16}),
        ("olmo2", {}),
    ],
)
@pytest.mark.parametrize("patch", [False, True])
def test_other_architectures(kind: str, changes: dict[str, Any], patch: bool) -> None:
    from llama_fast.eval.engine import Scorer
    from llama_fast.integrations.any_model import decoder_of

    model = tiny(kind, **changes)
    generator = torch.Generator().manual_seed(1)
    header = torch.randint(0, 300, (20,), generator=generator).tolist()
    pairs = []
    for _ in range(6):
        tail = torch.randint(0, 300, (9,), generator=generator).tolist()
        pairs.append(([*header, *tail[:5]], tail[5:]))
    expected = []
    for context, continuation in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *continuation[:-1]]])).logits[0]
        logprobs = logits[len(context) - 1 :].double().log_softmax(-1)
        expected.append(logprobs.gather(1, torch.tensor(continuation).unsqueeze(1)).sum().item())
    if patch:
        llama_fast.patch(model)
    before = model.config._attn_implementation
    found = Scorer(decoder_of(model), budget=30).score(pairs)
    assert [a.logprob for a in found] == pytest.approx(expected, rel=1e-5)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma2", {}, "expected logits that are a product with the head, got final_logit_softcap"),
        ("phi", {"rms_norm_eps": 1e-5}, "got a bias"),
        ("mamba", {}, "expected layers of attention alone, got linear_attention"),
    ],
)
def test_models_that_are_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    from llama_fast.integrations.any_model import decoder_of

    with pytest.raises(ValueError, match=message):
        decoder_of(tiny(kind, **changes))


# --- the cache of requests -----------------------------------------------------------------------

KILLED = """
import os, signal, sys
from tests.eval.test_harness import stories
lm = stories(sys.argv[1])
asked = 0
def count(task, questions):
    global asked
    asked += questions
    if asked == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
lm.progress = count
from tests.eval.harness_tasks import instances
lm.loglikelihood(instances("arc_easy", 30))
"""


def stories(cache: str | Path) -> HarnessModel:
    """The 260 K model, with small batches."""
    folder = data_file("checkpoints/stories260k")
    return HarnessModel(
        str(folder / "stories260K.bin"), str(folder / "tok512.bin"), dtype="float32", device="cpu",
        budget=256, cache=cache,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 twice: what was answered before is not asked again, and the answers are the same."""
    requests = instances("arc_easy", 30)
    whole = stories(tmp_path / "whole.sqlite")
    answers = whole.loglikelihood(requests)
    for most in (5, 20):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / "cache.sqlite"), str(most)],
            cwd=REPOSITORY, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL
    kept = RequestCache(tmp_path / "cache.sqlite")
    there = kept._file.execute("SELECT count(*) FROM answers").fetchone()[0]
    assert there >= 20 * 4 - 4
    kept.close()
    rest = stories(tmp_path / "cache.sqlite")
    found = rest.loglikelihood(requests)
    assert rest.cached == there
    computed = whole.scorer.work.computed
    assert rest.scorer.work.computed < computed * (120 - there + 20) / 120
    assert [a[0] for a in found] == pytest.approx([a[0] for a in answers], rel=1e-5)
    again = stories(tmp_path / "cache.sqlite")
    assert again.loglikelihood(requests) == found
    assert (again.cached, again.scorer.work.computed) == (120, 0)


def test_another_model_does_not_get_the_answers(tmp_path: Path) -> None:
    requests = [Instance("loglikelihood", {}, ("ab", "cd"), 0, ("t", 0, 1))]
    config = byte_config()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        lm = HarnessModel(llama_fast.LLaMA(config), "byte", cache=tmp_path / "c.sqlite")
        found.append((lm.loglikelihood(requests)[0], lm.cached))
    assert found[0][0] == found[1][0] != found[2][0]
    assert [cached for _, cached in found] == [0, 1, 0]


def test_answers_belong_to_settings_and_tokenizer_too(tmp_path: Path) -> None:
    """The same weights with another base of the angles; texts that another token ends."""
    likelihood = [Instance("loglikelihood", {}, ("ab", "cd"), 0, ("t", 0, 1))]
    text = [Instance("generate_until", {}, ("ab", {"max_gen_toks": 4}), 0, ("t", 0, 1))]
    config = byte_config()
    weights = llama_fast.LLaMA(config).state_dict()
    found = []
    for changes, ends in (({}, None), ({"rope_theta": 500.0}, None), ({}, 65)):
        model = llama_fast.LLaMA(dataclasses.replace(config, **changes))
        model.load_state_dict(weights)
        words = llama_fast.tokenizers.ByteTokenizer()
        words.end_ids = (ends,) if ends else words.end_ids
        lm = HarnessModel(model, words, cache=tmp_path / "c.sqlite")
        lm.loglikelihood(likelihood)
        lm.generate_until(text)
        found.append(lm.cached)
    assert found == [0, 0, 1]  # the likelihood of the first


# --- as the harness makes it, and what tasks ask for ------------------------------------------


def test_the_harness_makes_one_of_a_line_of_arguments(tmp_path: Path) -> None:
    """On its command line the device is "cuda:0" where none was named."""
    stories = data_file("checkpoints/stories260k")
    line = f"pretrained={stories / 'stories260K.bin'},dtype=bfloat16,max_length=64"
    given = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    lm = get_model("llama_fast").create_from_arg_string(line, given)
    assert isinstance(lm, HarnessModel) and (lm.batch, lm.max_length) == (1, 64)
    assert lm.model.head_weight.dtype == torch.bfloat16
    assert lm.model.head_weight.is_cuda == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "got num_beams other than 1"),
        ({"guidance_scale": 2.0}, "got guidance_scale"),
        ({"max_gen_toks": 1024}, "max_gen_toks: expected less than the model's 256 tokens"),
    ],
)
def test_generation_that_is_refused(options: dict[str, Any], message: str) -> None:
    lm = HarnessModel(llama_fast.LLaMA(byte_config()), "byte")
    with pytest.raises(ValueError, match=message):
        lm.generate_until([Instance("generate_until", {}, ("ab", options), 0, ("t", 0, 1))])


def test_sampling_has_the_usual_temperature_where_none_is_named() -> None:
    lm = HarnessModel(llama_fast.LLaMA(byte_config()), "byte")
    texts = [
        lm.generate_until(
            [Instance("generate_until", {}, ("ab", {"max_gen_toks": 8, **o}), 0, ("t", 0, 1))]
        )
        for o in ({"do_sample": True}, {"do_sample": True, "temperature": 1.0}, {})
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_tokenizer_of_more_tokens_than_the_model() -> None:
    config = llama_fast.models.LlamaConfig(200, 32, 2, 1, 0.0)
    with pytest.raises(ValueError, match="tokenizer: expected at most the model's 200 tokens"):
        HarnessModel(llama_fast.LLaMA(config), "byte")
