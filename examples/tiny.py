"""A tiny Llama, a tokenizer and a text, which the examples train by default.

Everything is made here, without a network.
"""

import argparse

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

TEXT = """Fourscore and seven years ago our fathers brought forth, on this continent, a new nation,
conceived in liberty, and dedicated to the proposition that all men are created equal.
Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived,
and so dedicated, can long endure. We are met on a great battle-field of that war.
It is for us the living, rather, to be dedicated here to the unfinished work which they who fought
here have thus far so nobly advanced.
"""


def arguments(description, given=None):
    """The command line that all examples share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", help="name or folder of a model to train, with its tokenizer")
    parser.add_argument("--text", help="file to train on")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--stock", action="store_true", help="without the kernels, to compare")
    return parser.parse_args(given)


def model_and_tokenizer(name=None):
    """A model of transformers and its tokenizer, the same ones at every call."""
    if name is not None:
        auto = transformers.AutoModelForCausalLM, transformers.AutoTokenizer
        return tuple(each.from_pretrained(name, trust_remote_code=False) for each in auto)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], vocab_size=320, special_tokens=["<end>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config), tokenizer


def rows(tokenizer, text=None, length=32):
    """Pieces of the text for a causal language model: dicts of `input_ids` and `labels`."""
    if text is not None:
        with open(text, encoding="utf-8") as file:
            words = file.read()
    else:
        words = TEXT
    tokens = tokenizer(words)["input_ids"]
    pieces = [tokens[i : i + length] for i in range(0, len(tokens) - length, length // 4)]
    return [{"input_ids": torch.tensor(p), "labels": torch.tensor(p)} for p in pieces]
