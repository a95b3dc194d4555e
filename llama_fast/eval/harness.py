"""The engine as a language model of EleutherAI's lm-evaluation-harness.

After ``import llama_fast.eval.harness`` the harness knows it as "llama_fast"; from its own command
line: ``python -m llama_fast.eval.harness --model llama_fast --model_args pretrained=FOLDER ...``.
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
from llama_fast.generate.engine import Engine
from llama_fast.generate.requests import GenerationRequest, GenerationResult
from llama_fast.generate.sampling import SamplingOptions
from llama_fast.integrations.any_model import decoder_of
from llama_fast.models.decoder import Decoder
from llama_fast.models.loading import check_vocabulary

# What a task's generation settings may hold besides lengths and stops.
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_IGNORED = ("do_sample", "temperature", "num_beams", "use_cache", "pad_token_id", "eos_token_id")

Question = tuple[str, Any]  # task and number of the document


@register_model("llama_fast")
class HarnessModel(TemplateLM):
    """A model that answers the harness's requests.

    Args:
        pretrained: what :func:`llama_fast.integrations.any_model.load_any` reads: own checkpoint,
            Hugging Face folder or hub name, GGUF, Meta, llama2.c; or a model, of transformers too.
        tokenizer: file or folder, or of transformers; None: the model's own.
        dtype: "float32", "bfloat16", "float16", or "auto": as stored.
        device: "cpu", "cuda", or None: a GPU if there is one.
        batch_size: sequences generated at once. Likelihoods are packed by `budget` whatever it is.
        budget: tokens of a forward pass.
        max_length: the most tokens of a request; None: those of the model.
        cache: file with the answers of earlier runs; None keeps none.
        seed: of sampling, where a task samples.
        trust_remote_code: run the Python that the model's folder or repository brings.

    Attributes:
        truncated: number of requests whose context was cut at its beginning to fit.
        cached: number of requests that `cache` answered.
        progress: called with (task, number of questions) as they are answered.
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

        trusted = trust_remote_code is True  # and no text that happens to be true
        model, self.words = load_any(
            pretrained, tokenizer, dtype, device, trust_remote_code=trusted
        )
        self.name = pretrained if isinstance(pretrained, str) else type(pretrained).__name__
        self.model: Decoder = decoder_of(model)
        check_vocabulary(self.words, self.model.config.vocab_size)
        self.scorer = Scorer(self.model, int(budget))
        most = self.model.config.max_seq_len
        if max_length is not None and int(max_length) < 2:
            raise ValueError(f"max_length: expected at least 2 tokens, got {max_length}")
        self.max_length = most if max_length is None else min(int(max_length), most)
        self.batch = 32 if batch_size in (None, "auto") else int(batch_size)
        self.seed = int(seed)
        self.cache = None if cache is None else RequestCache(cache)
        self.model_hash = fingerprint(model)
        # What its likelihoods follow from beside the tokens asked about, and its texts.
        self._source = [self.model_hash, settings_of(model)]
        self._writer = [*self._source, vocabulary_of(self.words)]
        self._end_ids = end_ids(self.words)
        self.truncated = self.cached = 0
        self.progress: Callable[[str, int], object] = lambda task, questions: None
        self._template: ChatTemplate | None = None

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
        """What the harness makes a model with; its device is "cuda:0" where nobody named one."""
        config = dict(additional_config or {})
        if config.get("device") == "cuda:0" and not torch.cuda.is_available():
            config["device"] = None
        return super().create_from_arg_obj(arg_dict, config)

    # --- tokens ------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self.words.bos_id if self.words.eos_id is None else self.words.eos_id
        if found is None:
            raise ValueError(
                "tokenizer: expected one with a token that begins or ends a text, got none"
            )
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self.eot_token_id if self.words.bos_id is None else self.words.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Part of the names of the harness's own caches."""
        return self.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Ids, with a begin token in front where the model was trained with one."""
        ids = self.words.encode(string, special=True)
        return ids if add_special_tokens is False else self.words.begin(ids)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness has it; a context is encoded once for all options that come after it."""
        stripped = context.rstrip()
        continuation, context = context[len(stripped) :] + continuation, stripped
        if self._context[0] != context:
            self._context = context, self.tok_encode(context)
        held = self._context[1]
        return held, self.tok_encode(context + continuation)[len(held) :]

    _context: tuple[str | None, list[int]] = (None, [])

    # --- likelihoods -------------------------------------------------------------------------

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether it is what greedy decoding gives) each."""
        self._done = _Progress(requests, self.progress)
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(context, continuation) for _, context, continuation in requests]
        return self._likelihoods(pairs, self._done)

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Cut at the beginning, as the harness does, to the tokens that the model takes."""
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
        answers = self._remembered(keys, _is_likelihood)
        for number, key in enumerate(keys):
            if key in answers:
                done(number)
        wanted: dict[bytes, list[int]] = {}
        for number, key in enumerate(keys):
            if key not in answers:
                wanted.setdefault(key, []).append(number)
        asked = list(wanted)

        def keep(complete: list[tuple[int, Likelihood]]) -> None:
            found = [(asked[i], [one.logprob, one.greedy]) for i, one in complete]
            self._remember(found)
            answers.update(found)
            for key, _ in found:
                for number in wanted[key]:
                    done(number)

        self.scorer.score([pairs[wanted[key][0]] for key in asked], keep)
        return [(answers[key][0], bool(answers[key][1])) for key in keys]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each text, in windows of the longest the model takes."""
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
        """The text that follows each context, up to a stop string or the most tokens."""
        done = _Progress(requests, self.progress)
        prepared = [self._generation(request, number) for number, request in enumerate(requests)]
        keys = [key for key, _, _ in prepared]
        answers = self._remembered(keys, lambda answer: isinstance(answer, str))
        asked = [number for number, key in enumerate(keys) if key not in answers]
        for number in set(range(len(keys))).difference(asked):
            done(number)

        def keep(index: int, result: GenerationResult) -> None:
            key, _, stops = prepared[asked[index]]
            answers[key] = postprocess_generated_text(result.text, stops, None)
            self._remember([(key, answers[key])])
            done(asked[index])

        engine = Engine(self.model, self.words, max_batch=self.batch)
        engine.generate([prepared[number][1] for number in asked], on_done=keep)
        return [answers[key] for key in keys]

    def _generation(
        self, request: Instance, number: int
    ) -> tuple[bytes, GenerationRequest, list[str]]:
        text, given = request.args
        options: dict[str, Any] = dict(normalize_gen_kwargs(given, default_max_gen_toks=256))
        stops = handle_stop_sequences(options.pop("until"), eos=None)
        most = options.pop("max_gen_toks")
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
        room = self.max_length - most
        if room < 1:
            raise ValueError(
                f"max_gen_toks: expected less than the model's {self.max_length} tokens, got {most}"
            )
        tokens = self.tok_encode(text)
        if len(tokens) > room:
            self.truncated += 1
            tokens = tokens[-room:]
        told = [text, tokens, stops, self._end_ids, most, sampling]
        key = key_of(self._writer, "generation", *told)
        prompt = GenerationRequest(
            tokens or [self.prefix_token_id],
            max_new_tokens=most,
            sampling=SamplingOptions(**sampling),
            stop=stops,
            stop_ids=self._end_ids,
        )
        return key, prompt, stops

    # --- the rest ----------------------------------------------------------------------------

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as a text; without a generation prompt the last message goes on."""
        if self._template is None:
            if self.words.chat_template is None:
                raise ValueError("apply_chat_template: expected a model with a template, got none")
            self._template = ChatTemplate.from_model(self.words.chat_template)
        if not add_generation_prompt:
            return self._template.continued(chat_history, self.words)
        return self._template.render(chat_history, self.words, add_generation_prompt=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template, for the record."""
        return self.words.chat_template if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes down about the model."""
        return {
            "model_dtype": str(self.model.head_weight.dtype),
            "model_sha256": self.model_hash,
            "max_length": self.max_length,
        }

    def _remembered(self, keys: list[bytes], valid: Callable[[Any], bool]) -> dict[bytes, Any]:
        found = {} if self.cache is None else self.cache.get(list(set(keys)), valid)
        self.cached += sum(key in found for key in keys)
        return found

    def _remember(self, answers: list[tuple[bytes, Any]]) -> None:
        if self.cache is not None:
            self.cache.put(answers)


def _is_likelihood(answer: Any) -> bool:
    """Whether an answer is [log-probability, whether greedy decoding gives it]."""
    return isinstance(answer, list) and list(map(type, answer)) == [float, bool]


class _Progress:
    """Counts requests; says so when all those of a question are answered."""

    def __init__(self, requests: Sequence[Instance], say: Callable[[str, int], object]) -> None:
        self._say = say
        self._questions: list[Question] = [(r.task_name or "", r.doc_id) for r in requests]
        self._left = Counter(self._questions)

    def __call__(self, number: int) -> None:
        question = self._questions[number]
        self._left[question] -= 1
        if self._left[question] == 0:
            self._say(question[0], 1)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
