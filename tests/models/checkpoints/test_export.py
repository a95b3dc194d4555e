"""Models and tokenizers that we write, read back by us and by transformers."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from llama_fast.models import LLaMA, Llama3RopeScaling, LlamaConfig, load, save
from llama_fast.models.checkpoints.common import weight_names
from llama_fast.models.checkpoints.huggingface import NAMES
from llama_fast.tokenizers import ByteTokenizer, Tokenizer, TokenizerError, load_tokenizer
from llama_fast.tokenizers.save import gguf_fields, save_huggingface
from llama_fast.tokenizers.train_bpe import train_bpe
from tests.models.checkpoints.test_meta import META_TINY, PARAMS
from tests.models.peers import SHAPES, check, transformers_model
from tests.paths import (
    REPOSITORY,
    TOKENIZERS,
    data_file,
    extra,
    gguf_tiny,
    original,
    smollm2,
    tokenizer_model,
)
from tests.tokenizers.test_tokenizers import golden

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LLAMA2_GGUF = "checkpoints/gguf_tiny/llama-2-tiny-random.gguf"
STORIES = "checkpoints/stories260k/stories260K.bin"
TEXTS = (
    "Hello world", " two  spaces\n\nand lines\t", "naïve café – 你好 🦙", "it's 12345 o'clock", "",
    "\n", "Once upon a time, there was a little girl named Lily.",
)  # fmt: skip


def written(model: LLaMA, folder: Path, to: str, tokenizer: Tokenizer | None = None) -> Path:
    path = folder / ("model.gguf" if to == "gguf" else to)
    save(model, path, tokenizer, to=to)
    return path


def random_model(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> LLaMA:
    """The same as transformers_model(config)."""
    model, weights = LLaMA(config), transformers_model(config).state_dict()
    names = weight_names(config, NAMES)
    model.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    return model.to(dtype).eval()


def check_same(model: LLaMA, other: LLaMA) -> None:
    assert dict(other.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        found = other.get_parameter(name)
        assert found.dtype == weight.dtype, name
        assert torch.equal(found, weight), name


def in_transformers(path: Path) -> tuple[Any, Any]:
    """transformers' model and tokenizer of a folder or a GGUF file."""
    options = {} if path.is_dir() else {"gguf_file": path.name}
    folder = path if path.is_dir() else path.parent
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    return model, transformers.AutoTokenizer.from_pretrained(folder, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_weights_and_config_come_back(
    tmp_path: Path, to: str, shape: str, dtype: torch.dtype
) -> None:
    config = SHAPES[shape]
    model = random_model(config, dtype)
    if to == "meta" and shape in ("mqa-wide-heads", "llama3-rope", "linear-rope"):
        with pytest.raises(ValueError, match=r"as params\.json has no field for"):
            written(model, tmp_path, to)
        assert not list(tmp_path.iterdir())
        return
    again, tokenizer = load(written(model, tmp_path, to))
    assert tokenizer is None
    check_same(model, again)
    found = again.config
    if to == "meta":  # does not say how long a sequence may be
        config = dataclasses.replace(config, max_seq_len=found.max_seq_len)
    if to == "gguf":
        config = dataclasses.replace(config, rms_norm_eps=float(np.float32(config.rms_norm_eps)))
    if to == "gguf" and config.rope_scaling is not None:  # kept as the factors that it leads to
        assert found.rope_factors is not None
        assert (found.rope_factors[0], found.rope_factors[-1]) == (1, 8)
        config = dataclasses.replace(config, rope_scaling=None)
        config = dataclasses.replace(config, rope_factors=found.rope_factors)
    assert found == config


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_has_the_same_logits(tmp_path: Path, shape: str) -> None:
    config = SHAPES[shape]
    path = written(random_model(config), tmp_path, "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokens = torch.randint(config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(theirs(tokens).logits, transformers_model(config)(tokens).logits)


@torch.no_grad()
def test_llama_3_1_scaling_survives_every_format(tmp_path: Path) -> None:
    """GGUF keeps one factor for each frequency; the others what leads to it."""
    config = LlamaConfig(97, 64, 4, 2, num_kv_heads=2, ffn_dim=96, rope_theta=500000.0,
                         rope_scaling=Llama3RopeScaling(32.0), max_seq_len=131072)  # fmt: skip
    model = random_model(config)
    tokens = torch.arange(90).view(2, 45)
    for first in ("hf", "meta", "gguf"):
        here, _ = load(written(model, tmp_path / first, first))
        for then in ("hf", "meta", "gguf"):
            again, _ = load(written(here, tmp_path / first / then, then))
            check_same(model, again)
            if then != "gguf":
                assert again.config.rope_scaling == config.rope_scaling, (first, then)
            assert again.config.max_seq_len == 131072
            # The angles of one more rounding to float32; no scaling at all is 10^4 times further.
            torch.testing.assert_close(again(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    plain = LLaMA(dataclasses.replace(config, rope_scaling=None)).eval()
    plain.load_state_dict(model.state_dict())
    assert (plain(tokens) - model(tokens)).abs().max() > 0.01


def test_published_params_json(tmp_path: Path) -> None:
    """What we write of the published shapes are the numbers that Meta published."""
    from llama_fast.models.checkpoints.meta import read_config, write_config

    multipliers = {"llama2-7b": None, "llama2-70b": 1.3, "llama3-8b": 1.3, "llama3.1-405b": 1.2,
                   "llama3.2-1b": 1.5}  # fmt: skip
    for name, multiplier in multipliers.items():
        config = LlamaConfig.preset(name)
        params = write_config(config)
        assert params.get("ffn_dim_multiplier") == multiplier
        assert set(params) <= {
            "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps", "multiple_of",
            "ffn_dim_multiplier", "rope_theta", "use_scaled_rope",
        }  # fmt: skip
        (tmp_path / "params.json").write_text(json.dumps(params))
        shard = {"tok_embeddings.weight": torch.empty(1, config.embed_dim, device="meta")}
        if not config.tie_embeddings:
            shard["output.weight"] = torch.empty(1)
            shard["tok_embeddings.weight"] = torch.empty(1, config.embed_dim)
        assert read_config(tmp_path / "params.json", [shard]) == config


@pytest.mark.parametrize("maker", ["gguf-py", pytest.param("llama.cpp", marks=extra(LLAMA2_GGUF))])
def test_a_gguf_file_is_written_as_it_was(tmp_path: Path, maker: str) -> None:
    """Names, shapes, types and bytes of all tensors, and the vocabulary, are llama.cpp's."""
    source = original(LLAMA2_GGUF) if maker == "llama.cpp" else gguf_tiny()
    model, tokenizer = load(source)
    path = written(model, tmp_path, "gguf", tokenizer)
    theirs, ours = gguf.GGUFReader(source), gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in ours.tensors}
    assert found.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        mine = found[tensor.name]
        assert mine.tensor_type == tensor.tensor_type, tensor.name
        assert mine.shape.tolist() == tensor.shape.tolist(), tensor.name
        assert mine.data.tobytes() == tensor.data.tobytes(), tensor.name
    for key, field in theirs.fields.items():
        if key.startswith(("tokenizer.", "llama.")) or key == "general.file_type":
            assert ours.fields[key].contents() == field.contents(), key


def test_the_real_pth_file_is_written_as_it_was(tmp_path: Path) -> None:
    source = data_file("checkpoints/meta_tiny/demo_rand_params.pth")
    model, _ = load(source, config=META_TINY)
    path = written(model, tmp_path, "meta")
    theirs = torch.load(source, weights_only=True)
    ours = torch.load(path / "consolidated.00.pth", weights_only=True)
    assert ours.keys() == {name for name in theirs if not name.endswith("attention.mask")}
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
    from llama_fast.models.checkpoints.meta import read_config

    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    assert read_config(path / "params.json", [ours]) == read_config(
        tmp_path / "params.json", [theirs]
    )


@torch.no_grad()
def test_stories_in_every_format(tmp_path: Path) -> None:
    model, tokenizer = load(data_file(STORIES))
    assert tokenizer is not None
    ids = torch.tensor([[1, *tokenizer.encode(TEXTS[-1])]])
    for to in ("hf", "meta", "gguf"):
        path = written(model, tmp_path, to, tokenizer)
        again, its = load(path)
        check_same(model, again)
        assert its is not None and (its.bos_id, its.eos_id, its.add_bos) == (1, 2, True)
        assert [its.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert its.decode(ids[0].tolist()) == TEXTS[-1]
        if to != "meta":
            theirs, auto = in_transformers(path)
            assert auto(TEXTS[-1]).input_ids == ids[0].tolist()
            check("logits", model(ids), model.double()(ids), theirs(ids).logits)
            model.float()


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_in_every_format(tmp_path: Path) -> None:
    """From one to the next and back: the same bits, the same tokens, the same chats."""
    model, tokenizer = load(smollm2(), dtype=torch.bfloat16)
    assert tokenizer is not None and tokenizer.chat_template is not None
    tokenizer.add_end_ids(tokenizer.special["<|endoftext|>"])  # as models with two ends have it
    here, its = model, tokenizer
    for to in ("hf", "gguf"):
        path = written(here, tmp_path, to, its)
        here, found = load(path)
        assert found is not None
        its = found
        check_same(model, here)
        for text in (*TEXTS, "<|im_start|>"):
            assert its.encode(text) == tokenizer.encode(text)
            assert its.encode(text, special=True) == tokenizer.encode(text, special=True)
        for name in ("bos_id", "eos_id", "end_ids", "add_bos", "special", "chat_template"):
            assert getattr(its, name) == getattr(tokenizer, name), name
    theirs, auto = in_transformers(tmp_path / "hf")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert auto.apply_chat_template(chat, tokenize=False).endswith("of France?<|im_end|>\n")
    ids = auto("The capital of France is", return_tensors="pt").input_ids
    assert ids.tolist() == [tokenizer.encode("The capital of France is")]
    said = theirs.generate(ids, max_new_tokens=2, do_sample=False)[0, ids.shape[1] :]
    assert auto.decode(said) == " Paris."
    assert theirs.generation_config.eos_token_id == list(tokenizer.end_ids)
    exact, _ = load(smollm2(), dtype=torch.bfloat16)
    exact.double()
    # Of a few tokens alone the error would be chance: 0.19 and 0.12 for the five above.
    text = (REPOSITORY / "LICENSE").read_text()[:1000]
    ids = torch.tensor([tokenizer.encode(text)])
    check("logits", model(ids), exact(ids), theirs(ids).logits)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    def make(name: str) -> Tokenizer:
        if name == "byte":
            return ByteTokenizer()
        if name == "learned":
            folder = tmp_path_factory.mktemp("learned")
            text = data_file("corpora/tinyshakespeare.txt").read_text()[:200_000]
            return train_bpe([text], 600, folder)
        return load_tokenizer(tokenizer_model(name))

    return make


@pytest.mark.parametrize("name", [*TOKENIZERS, "byte", "learned"])
def test_tokenizers_give_the_same_ids_everywhere(
    tmp_path: Path, tokenizers: Callable[[str], Tokenizer], name: str
) -> None:
    """llama.cpp's strings for the published ones, ours for the others."""
    tokenizer = tokenizers(name)
    tokenizer.chat_template = "{{ messages }}"
    published = name not in ("byte", "learned")
    cases = golden(name) if published else [(text, tokenizer.encode(text)) for text in TEXTS]
    save_huggingface(tokenizer, tmp_path, 4096)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    from llama_fast.tokenizers import from_gguf

    fields = gguf_fields(tokenizer, tokenizer.vocab_size + 3)
    assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.vocab_size + 3
    again = {"hf": load_tokenizer(tmp_path), "gguf": from_gguf(fields)}
    for text, ids in cases:
        assert auto(text, add_special_tokens=False).input_ids == ids, repr(text)
        begin = [tokenizer.bos_id] if tokenizer.add_bos else []
        assert auto(text).input_ids == begin + ids, repr(text)
        for which, found in again.items():
            assert found.encode(text) == ids, (which, text)
            assert found.decode(ids) == tokenizer.decode(ids), (which, text)
    for which, found in again.items():
        for attribute in ("bos_id", "eos_id", "add_bos", "special", "chat_template"):
            assert getattr(found, attribute) == getattr(tokenizer, attribute), (which, attribute)
    assert (auto.bos_token_id, auto.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_meta_keeps_the_tokenizer_model(
    tmp_path: Path, tokenizers: Callable[[str], Tokenizer]
) -> None:
    for name in ("mistral", "tekken"):
        tokenizer = tokenizers(name)
        config = LlamaConfig(tokenizer.vocab_size, 8, 2, 1, ffn_dim=8)
        path = written(LLaMA(config), tmp_path / name, "meta", tokenizer)
        source = tokenizer_model(name)
        assert (path / "tokenizer.model").read_bytes() == source.read_bytes()
    path = written(LLaMA(LlamaConfig(257, 8, 2, 1)), tmp_path / "byte", "meta", ByteTokenizer())
    assert not (path / "tokenizer.model").exists()


def test_a_tokenizer_that_gguf_has_no_name_for(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers

    from llama_fast.tokenizers.bpe import FastTokenizer

    letters = {"a": 0, "b": 1, "ab": 2, "abb": 3}
    backend = Backend(models.BPE(letters, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match=r"that GGUF has a name for.* got .*Whitespace"):
        gguf_fields(FastTokenizer(backend, None, None), 4)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fields = gguf_fields(FastTokenizer(backend, None, None), 4)
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    backend.model = models.BPE(letters, [("a", "b")], ignore_merges=True)
    with pytest.raises(TokenizerError, match="they do not lead to 'abb'"):
        gguf_fields(FastTokenizer(backend, None, None), 4)
    backend.model = models.BPE(letters, [("a", "b")])
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(TokenizerError, match=r"without a normalizer.* got Lowercase"):
        gguf_fields(FastTokenizer(backend, None, None), 4)
    backend.model = models.WordLevel(letters, "a")
    with pytest.raises(TokenizerError, match=r"expected byte-level BPE for a GGUF file"):
        gguf_fields(FastTokenizer(backend, None, None), 4)


def test_gguf_takes_no_float64(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype: expected float32, .* got torch\.float64"):
        save(random_model(SHAPES["gqa-tied"]).double(), tmp_path / "a.gguf", to="gguf")
    with pytest.raises(ValueError, match="to: expected hf, meta or gguf, got 'onnx'"):
        save(random_model(SHAPES["gqa-tied"]), tmp_path / "a", to="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_what_is_there_is_replaced_only_when_asked_to(tmp_path: Path, to: str) -> None:
    config = SHAPES["gqa-tied"]
    first, second = random_model(config), random_model(config, torch.bfloat16)
    path = written(first, tmp_path, to)
    with pytest.raises(FileExistsError, match="exists already"):
        written(second, tmp_path, to)
    check_same(first, load(path)[0])
    save(second, path, to=to, overwrite=True)
    check_same(second, load(path)[0])
    # Anything else than a checkpoint stays, whatever is asked for.
    other = tmp_path / "notes"
    if to == "gguf":
        other.write_text("notes")
    else:
        other.mkdir()
        (other / "notes.txt").write_text("notes")
    with pytest.raises(FileExistsError, match="to be overwritten, got"):
        save(second, other, to=to, overwrite=True)
    with pytest.raises(FileExistsError, match="got something else"):
        save(second, path, to="hf" if to == "gguf" else "gguf", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "notes"])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_a_full_disk_leaves_nothing_new(tmp_path: Path, to: str, overwrite: bool) -> None:
    """A limit on the size of files stands for the full disk."""
    first, second = random_model(SHAPES["gqa-tied"]), random_model(SHAPES["mha-untied"])
    if overwrite:
        written(first, tmp_path, to)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    path = tmp_path / ("model.gguf" if to == "gguf" else to)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written .*nothing of it is left"):
            save(second, path, to=to, overwrite=overwrite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
