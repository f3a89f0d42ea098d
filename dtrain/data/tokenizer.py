"""The tokenizer of a run, loaded by name or trained on the run's own text, with its special tokens and template."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from dtrain.config.load import find_file
from dtrain.config.schema import Config
from dtrain.data.hub import offline_without_network, unreachable
from dtrain.errors import BadInput, DtrainError, PartMissing

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""OpenAI's ChatML, the one template that is ours to name."""

_FALLBACK = "tokenizer_default_fallback_"
"""Before the name of a template for tokenizers that have none, as in Axolotl."""

_CONTROL_TEXT = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>")
"""Control tokens as prompt formats and chat templates write them."""


def load_tokenizer(config: Config, config_dir: Path | None = None) -> Any:
    """The tokenizer that `config` names, ready to use. BadInput when there is none, or a needed token is missing."""
    said, key = config.base_model, "base_model"
    options: dict[str, Any] = {"revision": config.revision_of_model}
    if config.tokenizer_config:
        said, key, options = config.tokenizer_config, "tokenizer_config", {}
    options |= {"use_fast": config.tokenizer_use_fast, "trust_remote_code": config.trust_remote_code}
    if config.tokenizer_type and not hasattr(_transformers(), config.tokenizer_type):
        words, fix = "transformers has no tokenizer of this name", "leave it out: the model's own is found"
        raise BadInput(words, key="tokenizer_type", value=config.tokenizer_type, fix=fix)
    return with_special_tokens(named_tokenizer(said, key, config_dir, **options), config)


def named_tokenizer(said: str, key: str, config_dir: Path | None = None, **options: Any) -> Any:
    """A tokenizer by folder or hub name, as it is. `key` is where it was said, for messages."""
    found = find_file(said, config_dir / "config.yaml" if config_dir is not None else None)
    if found is not None and not any((found / name).exists() for name in _TOKENIZER_FILES):
        fix = "tokenizer_config: a hub name or a folder with one, or train_tokenizer: {vocab_size: 2048}"
        raise BadInput("there is no tokenizer in this folder", key=key, value=said, fix=fix)
    if found is None:
        offline_without_network()
    try:
        return _transformers().AutoTokenizer.from_pretrained(str(found or said), **options)
    except DtrainError:
        raise
    except Exception as error:  # whatever transformers, tokenizers or the hub raise; told with its cause
        raise _load_error(said, key, error, found is not None) from error


def train_tokenizer(texts: Iterable[str], config: Config, templates: Sequence[str]) -> Any:
    """Byte-level BPE on the run's own text. Control texts in `templates` (`<|user|>`) become tokens of their own."""
    if config.train_tokenizer is None:
        raise ValueError("train_tokenizer is not set")
    control = list(dict.fromkeys(text for template in templates for text in _CONTROL_TEXT.findall(template)))
    smallest = 256 + 4 + len(control)
    if config.train_tokenizer.vocab_size < smallest:
        words = "the vocabulary is smaller than 256 bytes and the special tokens"
        raise BadInput(
            words, key="train_tokenizer.vocab_size", value=config.train_tokenizer.vocab_size, allowed=f">= {smallest}"
        )
    return with_special_tokens(_byte_level_bpe(texts, config.train_tokenizer.vocab_size, control), config)


def blank_tokenizer(config: Config) -> Any:
    """A tokenizer of bytes and special tokens: enough to render a chat template before one is trained."""
    return with_special_tokens(_byte_level_bpe([], 0, ()), config)


def with_special_tokens(tokenizer: Any, config: Config) -> Any:
    """Adds what the config says; a tokenizer without a pad token gets one that is only ever filler."""
    said = config.special_tokens.model_dump(exclude_none=True) if config.special_tokens else {}
    if said:
        tokenizer.add_special_tokens(said)
    if config.tokens:
        tokenizer.add_tokens(list(config.tokens))
    if tokenizer.eos_token_id is None:
        fix = 'special_tokens: {eos_token: "</s>"}, or the token this model ends its turns with'
        raise BadInput("the tokenizer has no end token (eos)", key="special_tokens.eos_token", fix=fix)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    template = chat_template(config.chat_template, config.chat_template_jinja, tokenizer, "chat_template")
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def chat_template(said: str | None, jinja: str | None, tokenizer: Any, key: str) -> str | None:
    """The template text for what a config says; None leaves the tokenizer as it is."""
    own = tokenizer.chat_template
    if said is not None and said.startswith(_FALLBACK):
        said = "tokenizer_default" if own else said.removeprefix(_FALLBACK)
    if said is None or said == "tokenizer_default":
        return jinja or (own.get("default") if isinstance(own, dict) else None)
    if said == "jinja":
        return jinja
    if "{" in said:
        return said
    named = {"chatml": CHATML, **(own if isinstance(own, dict) else {})}
    if said not in named:
        fix = "tokenizer_default takes the model's own; or write it into chat_template_jinja"
        allowed = ", ".join(["tokenizer_default", "jinja", *named])
        raise BadInput("no chat template of this name", key=key, value=said, allowed=allowed, fix=fix)
    return str(named[said])


def fingerprint(tokenizer: Any, saved: Path) -> str:
    """Of all that changes token ids: vocabulary, rules, special tokens, template. `saved` is its folder."""
    digest = hashlib.sha256()
    own = saved / "tokenizer.json"
    for file in [own] if own.exists() else sorted(path for path in saved.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    digest.update(json.dumps([ids, tokenizer.chat_template, len(tokenizer)], sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Encoder:
    """Text to ids without anything added; what the tokenizer would add in front is known and added by the formats."""

    tokenizer: Any = field(repr=False)
    prefix: tuple[int, ...]
    """What the tokenizer puts before a text by itself: its BOS, or nothing."""
    eos_id: int
    bos_id: int | None
    stop_ids: frozenset[int]
    """Tokens that may end a turn: the end token and every added token; text never merges into these."""

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and _prefix(tokenizer) != ()
        return cls(
            tokenizer=tokenizer,
            prefix=(bos,) if adds_bos else (),
            eos_id=tokenizer.eos_token_id,
            bos_id=bos,
            stop_ids=frozenset({tokenizer.eos_token_id, *tokenizer.added_tokens_decoder}),
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._call(texts)["input_ids"] if texts else []

    def encode_with_ends(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids, and for each the position in the text where it ends. BadInput for a tokenizer that cannot tell."""
        if not self.tokenizer.is_fast:
            fix = "tokenizer_use_fast: true, or a tokenizer that has a tokenizer.json"
            raise BadInput("chat_template needs a fast tokenizer, which knows where each token lies", fix=fix)
        if not texts:
            return
        found = self._call(texts, return_offsets_mapping=True)
        for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True):
            yield ids, [end for _, end in offsets]

    def _call(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
            verbose=False, **options,
        )  # fmt: skip


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    plain, full = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    return tuple(takewhile(lambda index: index != plain[0], full)) if plain else ()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise PartMissing.of("transformers", "train", "tokenising") from None
    return transformers


_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model",
    "tekken.json",
)  # fmt: skip


def _load_error(said: str, key: str, error: Exception, local: bool) -> BadInput:
    if not local and unreachable(error):
        fix = "connect, or name a local folder; what was downloaded before works with HF_HUB_OFFLINE=1"
        return BadInput("the hub cannot be reached, and this is no local folder", key=key, value=said, fix=fix)
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    fix = "check the name, and the access to it (hf auth login)" if not local else "check the files in this folder"
    return BadInput(f"the tokenizer cannot be loaded: {reason}", key=key, value=said, fix=fix)


def _byte_level_bpe(texts: Iterable[str], vocab_size: int, control: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*named.values(), *(text for text in control if text not in named.values())],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
