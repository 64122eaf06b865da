"""The character tokenizer: one token per character, written as the files that `transformers` and vLLM load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from workflows.arithmetic.stages import ALPHABET

PAD: Final = 0
BOS: Final = 1
EOS: Final = 2
UNK: Final = 3
SPECIAL: Final = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY: Final = (*SPECIAL, *ALPHABET)
_INDEX: Final = {token: k for k, token in enumerate(VOCABULARY)}
CHAT_TEMPLATE: Final = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat is the text of its messages: the same tokens as a completion gets."""


def encode(text: str) -> list[int]:
    """Return the tokens of a text, without beginning and end."""
    return [_INDEX.get(char, UNK) for char in text]


def decode(tokens: list[int]) -> str:
    """Return the text of tokens, without special ones."""
    return "".join(VOCABULARY[token] for token in tokens if token >= len(SPECIAL))


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    A BPE model without merges splits a text into its characters. The files are plain JSON, so that training needs no
    tokenizer library.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": k, "content": token, **flags, "special": True} for k, token in enumerate(SPECIAL)]
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}]
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [*begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _INDEX,
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
