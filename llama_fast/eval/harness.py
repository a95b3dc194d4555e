"""The scorer and the generation engine as a model of EleutherAI's lm-evaluation-harness.

Importing this module registers the model "llama_fast". To use it in the harness's command line:
``python -m llama_fast.eval.harness --model llama_fast --model_args pretrained=FOLDER ...``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)

from llama_fast.data.chat import ChatTemplate, end_ids
from llama_fast.eval.engine import Likelihood, Scorer
from llama_fast.eval.request_cache import (
    RequestCache,
    fingerprint,
    key_of,
    settings_of,
    vocabulary_of,
)
from llama_fast.generation.engine import Engine
from llama_fast.generation.requests import GenerationRequest, GenerationResult
from llama_fast.generation.sampling import SamplingOptions
from llama_fast.integrations.any_model import decoder_of
from llama_fast.models.decoder import Decoder
from llama_fast.models.loading import check_vocabulary

# Generation settings, besides length and stop strings, that a task may have.
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_IGNORED = ("do_sample", "temperature", "num_beams", "use_cache", "pad_token_id", "eos_token_id")

Question = tuple[str, Any]  # task and index of the document


@register_model("llama_fast")
class HarnessModel(TemplateLM):
    """A model for the harness: answers its likelihood and generation requests.

    Args:
        pretrained: a model, ours or one of transformers, or a path or name that
            :func:`llama_fast.integrations.any_model.load_any` accepts (checkpoint or training run
            of this package, Hugging Face folder or hub name, GGUF, Meta, llama2.c).
        tokenizer: a file or folder, or a tokenizer of transformers; None: the model's tokenizer.
        dtype: "float32", "bfloat16", "float16", or "auto" for the dtype of the checkpoint.
        device: "cpu", "cuda", ...; None: a GPU if there is one.
        batch_size: number of sequences generated at once. Likelihood requests are packed up to
            `budget` instead.
        budget: number of tokens in a forward pass.
        max_length: maximum number of tokens of a request; None: that of the model.
        cache: file of cached answers, which are reused; None for no cache.
        seed: seed for tasks that sample.
        trust_remote_code: whether to run Python code from the model's folder or repository.

    Attributes:
        truncated: number of requests whose context lost tokens at its beginning.
        cached: number of requests answered from `cache`.
        progress: called as ``progress(task, number of questions)`` when questions are answered.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str | None = None,
        budget: int = 2048,
        max_length: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        seed: int = 0,
        max_batch_size: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        from llama_fast.integrations.any_model import load_any

        trusted = trust_remote_code is True  # not just truthy: model_args passes text
        model, self.words = load_any(
            pretrained, tokenizer, dtype, device, trust_remote_code=trusted
        )
        self.name = pretrained if isinstance(pretrained, str) else type(pretrained).__name__
        self.model: Decoder = decoder_of(model)
        check_vocabulary(self.words, self.model.config.vocab_size)
        self.scorer = Scorer(self.model, int(budget))
        max_seq_len = self.model.config.max_seq_len
        if max_length is not None and int(max_length) < 2:
            raise ValueError(f"max_length: expected at least 2 tokens, got {max_length}")
        self.max_length = max_seq_len if max_length is None else min(int(max_length), max_seq_len)
        self.batch = 32 if batch_size in (None, "auto") else int(batch_size)
        self.seed = int(seed)
        self.cache = None if cache is None else RequestCache(cache)
        self.model_hash = fingerprint(model)
        # Parts of the cache keys: what likelihoods and what generated texts depend on.
        self._source = [self.model_hash, settings_of(model)]
        self._writer = [*self._source, vocabulary_of(self.words)]
        self._end_ids = end_ids(self.words)
        self.truncated = self.cached = self._generated = 0
        self.progress: Callable[[str, int], object] = lambda task, questions: None
        self._template: ChatTemplate | None = None

    @property
    def computed(self) -> int:
        """Number of tokens that went through the model so far."""
        return self.scorer.work.computed + self._generated

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """See :meth:`create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """Create the model; the harness's default device "cuda:0" is ignored without a GPU."""
        config = dict(additional_config or {})
        if config.get("device") == "cuda:0" and not torch.cuda.is_available():
            config["device"] = None
        return super().create_from_arg_obj(arg_dict, config)

    # --- tokens ------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.words.bos_id if self.words.eos_id is None else self.words.eos_id
        if token is None:
            raise ValueError(
                "tokenizer: expected one with a token that begins or ends a text, got none"
            )
        return token

    @property
    def prefix_token_id(self) -> int:
        """The token that serves as context of a text that has none."""
        return self.eot_token_id if self.words.bos_id is None else self.words.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in the harness's own caches."""
        return self.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Token ids of a text, after a begin token if the model was trained with one."""
        ids = self.words.encode(string, special=True)
        return ids if add_special_tokens is False else self.words.prepend_bos(ids)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode a pair as the harness does, but each context once for all its options."""
        stripped = context.rstrip()
        continuation, context = context[len(stripped) :] + continuation, stripped
        if self._context[0] != context:
            self._context = context, self.tok_encode(context)
        context_ids = self._context[1]
        return context_ids, self.tok_encode(context + continuation)[len(context_ids) :]

    _context: tuple[str | None, list[int]] = (None, [])

    # --- likelihoods -------------------------------------------------------------------------

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For each request, (log-probability of the continuation, whether it is the greedy one)."""
        self._done = _Progress(requests, self.progress)
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(context, continuation) for _, context, continuation in requests]
        return self._likelihoods(pairs, self._done)

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Drop tokens at the beginning of the context to fit `max_length`, as the harness does."""
        if len(continuation) > self.max_length:
            raise ValueError(
                f"continuation: expected at most the model's {self.max_length} tokens, got "
                f"{len(continuation)}"
            )
        excess = len(context) + len(continuation) - (self.max_length + 1)
        if excess > 0:
            self.truncated += 1
            context = context[excess:]
        return context, continuation

    def _likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], done: Callable[[int], object]
    ) -> list[tuple[float, bool]]:
        keys = [key_of(self._source, "likelihood", *pair) for pair in pairs]
        answers = self._cached_answers(keys, _is_likelihood)
        for number, key in enumerate(keys):
            if key in answers:
                done(number)
        pending: dict[bytes, list[int]] = {}
        for number, key in enumerate(keys):
            if key not in answers:
                pending.setdefault(key, []).append(number)
        pending_keys = list(pending)

        def keep(complete: list[tuple[int, Likelihood]]) -> None:
            new = [(pending_keys[i], [one.logprob, one.greedy]) for i, one in complete]
            self._store_answers(new)
            answers.update(new)
            for key, _ in new:
                for number in pending[key]:
                    done(number)

        self.scorer.score([pairs[pending[key][0]] for key in pending_keys], keep)
        return [(answers[key][0], bool(answers[key][1])) for key in keys]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each text, computed in windows of `max_length` tokens."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((context, continuation))
                owners.append(number)
        done, left = _Progress(requests, self.progress), Counter(owners)

        def count(window: int) -> None:
            left[owners[window]] -= 1
            if left[owners[window]] == 0:
                done(owners[window])

        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._likelihoods(pairs, count), strict=True):
            sums[owner] += logprob
        return sums

    # --- generation --------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text generated after each context, up to a stop string or the maximum length."""
        done = _Progress(requests, self.progress)
        prepared = [self._generation(request, number) for number, request in enumerate(requests)]
        keys = [key for key, _, _ in prepared]
        answers = self._cached_answers(keys, lambda answer: isinstance(answer, str))
        pending = [number for number, key in enumerate(keys) if key not in answers]
        for number in set(range(len(keys))).difference(pending):
            done(number)

        def keep(index: int, result: GenerationResult) -> None:
            key, _, stops = prepared[pending[index]]
            answers[key] = postprocess_generated_text(result.text, stops, None)
            self._store_answers([(key, answers[key])])
            done(pending[index])

        engine = Engine(self.model, self.words, max_batch=self.batch)
        engine.generate([prepared[number][1] for number in pending], on_done=keep)
        self._generated += engine.prefilled + engine.decoded
        return [answers[key] for key in keys]

    def _generation(
        self, request: Instance, number: int
    ) -> tuple[bytes, GenerationRequest, list[str]]:
        text, gen_kwargs = request.args
        options: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, default_max_gen_toks=256))
        stops = handle_stop_sequences(options.pop("until"), eos=None)
        max_new_tokens = options.pop("max_gen_toks")
        sampling = {name: options.pop(name) for name in _SAMPLING if name in options}
        temperature = float(options.get("temperature", 1.0))
        if options["do_sample"] and temperature > 0:
            sampling |= {"temperature": temperature, "seed": self.seed + number}
        unknown = sorted(set(options).difference(_IGNORED))
        if options.get("num_beams", 1) != 1:
            unknown.append("num_beams other than 1")
        if unknown:
            raise ValueError(
                f"generation_kwargs: expected none but {', '.join(_SAMPLING + _IGNORED)}, until "
                f"and max_gen_toks, got {', '.join(unknown)}"
            )
        max_context = self.max_length - max_new_tokens
        if max_context < 1:
            raise ValueError(
                f"max_gen_toks: expected less than the model's {self.max_length} tokens, got "
                f"{max_new_tokens}"
            )
        tokens = self.tok_encode(text)
        if len(tokens) > max_context:
            self.truncated += 1
            tokens = tokens[-max_context:]
        key = key_of(
            self._writer, "generation", text, tokens, stops, self._end_ids, max_new_tokens, sampling
        )
        prompt = GenerationRequest(
            tokens or [self.prefix_token_id],
            max_new_tokens=max_new_tokens,
            sampling=SamplingOptions(**sampling),
            stop=stops,
            stop_ids=self._end_ids,
        )
        return key, prompt, stops

    # --- templates, cache -------------------------------------------------------------------------

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Format a chat as text; without a generation prompt, the last message is not closed."""
        if self._template is None:
            if self.words.chat_template is None:
                raise ValueError("apply_chat_template: expected a model with a template, got none")
            self._template = ChatTemplate.from_model(self.words.chat_template)
        if not add_generation_prompt:
            return self._template.continued(chat_history, self.words)
        return self._template.render(chat_history, self.words, add_generation_prompt=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's chat template, which the harness records."""
        return self.words.chat_template if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """Facts about the model for the harness's results."""
        return {
            "model_dtype": str(self.model.head_weight.dtype),
            "model_sha256": self.model_hash,
            "max_length": self.max_length,
        }

    def _cached_answers(self, keys: list[bytes], valid: Callable[[Any], bool]) -> dict[bytes, Any]:
        answers = {} if self.cache is None else self.cache.get(list(set(keys)), valid)
        self.cached += sum(key in answers for key in keys)
        return answers

    def _store_answers(self, answers: list[tuple[bytes, Any]]) -> None:
        if self.cache is not None:
            self.cache.put(answers)


def _is_likelihood(answer: Any) -> bool:
    """Whether a cached answer has the form [log-probability, whether it is greedy]."""
    return isinstance(answer, list) and list(map(type, answer)) == [float, bool]


class _Progress:
    """Counts answered requests; reports a question once all of its requests are answered."""

    def __init__(self, requests: Sequence[Instance], report: Callable[[str, int], object]) -> None:
        self._report = report
        self._questions: list[Question] = [(r.task_name or "", r.doc_id) for r in requests]
        self._left = Counter(self._questions)

    def __call__(self, number: int) -> None:
        question = self._questions[number]
        self._left[question] -= 1
        if self._left[question] == 0:
            self._report(question[0], 1)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
