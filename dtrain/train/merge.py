"""An adapter merged into its base model: on the base in full precision, one tensor at a time, logits compared.

    base's files ──▶ W ──▶ W + scale·B·A (DoRA: rows back to their learned length) ──▶ shards of the merged model

Both models then write the logits of a probe, layer by layer: of neither is more than a layer ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.errors import RunFailed
from dtrain.files import read_json
from dtrain.train import adapters, own_attention, shards

LARGEST_CHANGE = 1e-3
"""Of a logit, relative to the spread of all: fp32 rounding gives 1e-6, a wrong merge gives 1."""
PROBE_TOKENS = 32
Read = Callable[[str], Tensor]
"""Name of a parameter → its fp32 numbers."""


def merge(adapter: Path, out: Path, shard_bytes: int = shards.SHARD_BYTES) -> float:
    """Write the base of `adapter` with it merged in, in the base's own precision, and adapter's tokenizer. Returns the
    largest change of a logit, relative to their spread, between adapter and merged model; RunFailed where it is not
    small. Merged in fp32, whatever the run's precision: a 16-bit or 4-bit merge rounds the adapter away (peft#2321).
    """
    from transformers import AutoTokenizer

    merging = Merging.of(adapter)
    out.mkdir(parents=True, exist_ok=True)
    change = merging.change() if merging is not None else whole(adapter, out)
    if not change < LARGEST_CHANGE:  # also NaN
        raise RunFailed(f"merging changes the logits by {change:.2%} of their spread", file=str(out))
    if merging is not None:
        _write_config(merging, adapter, out)
        shards.write(merging.stored(), out, shard_bytes)
    own_attention.mark(out, own_attention.sight_in(adapter))
    AutoTokenizer.from_pretrained(adapter).save_pretrained(out)
    return change


def whole(adapter: Path, out: Path) -> float:
    """The whole model in memory, by peft: for bases whose files hold other tensors than their modules (fused experts,
    pickles), and for a trained embedding that is the head too. The change of the logits, as of `merge`."""
    from peft import PeftConfig
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path).dtype
    tuned = adapters.read(adapter, torch.float32).eval()
    with torch.no_grad():
        before = logits_of(tuned)
        merged = tuned.merge_and_unload()
        after = logits_of(merged)
    merged.to(stored or torch.float32).save_pretrained(out)
    return difference(before, after)


def logits_of(model: nn.Module) -> Tensor:
    """Of a probe of ids in order."""
    ids = torch.arange(PROBE_TOKENS)[None] % model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def difference(before: Tensor, after: Tensor) -> float:
    """Largest change of a logit, relative to the spread of all."""
    return float((after - before).abs().max() / before.std())


# --- numbers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one matrix. R rank, I inputs, O outputs."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    magnitude_O: Tensor | None
    """DoRA's length of each row (arXiv 2402.09353)."""
    transposed: bool
    """The matrix lies as (I, O): GPT-2's Conv1D."""

    def onto(self, weight: Tensor) -> Tensor:
        """The merged matrix, in fp32."""
        weight_OI = weight.T if self.transposed else weight
        merged = torch.addmm(weight_OI, self.b_OR, self.a_RI, alpha=self.scale)
        if self.magnitude_O is not None:
            merged *= (self.magnitude_O / merged.norm(dim=1))[:, None]
        return merged.T if self.transposed else merged


@dataclass(frozen=True)
class Files:
    """Tensors of safetensors files, read when they are asked for."""

    where: Mapping[str, Path]

    @classmethod
    def of_model(cls, name: str) -> Files | None:
        """Of a folder or a hub name; None where its weights are no safetensors."""
        from transformers.utils import cached_file

        def find(file: str) -> Path | None:
            found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
            return None if found is None else Path(found)

        index = find("model.safetensors.index.json")
        names = sorted(set(read_json(index)["weight_map"].values())) if index else ["model.safetensors"]
        files = [find(one) for one in names]
        return None if None in files else cls.of([file for file in files if file is not None])

    @classmethod
    def of(cls, files: list[Path]) -> Files:
        from safetensors import safe_open

        where: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as handle:
                where |= dict.fromkeys(handle.keys(), file)
        return cls(where)

    def read(self, name: str) -> Tensor:
        """In its own precision; a copy, so that no file stays mapped."""
        from safetensors import safe_open

        with safe_open(self.where[name], framework="pt") as handle:
            return handle.get_tensor(name).clone()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Merging:
    """An adapter and the base it lies on, as files."""

    name: str
    """Of the base."""
    base: Files
    named: Mapping[str, str]
    """A parameter's name → the name of its tensor in the base's files."""
    adapter: Files
    low_rank: Mapping[str, LowRank]
    """By the name of the parameter it lies on."""

    @classmethod
    def of(cls, adapter: Path) -> Merging | None:
        """None where the base cannot be merged tensor by tensor."""
        told = read_json(adapter / "adapter_config.json")
        name = told["base_model_name_or_path"]
        base, own = Files.of_model(name), Files.of([adapter / "adapter_model.safetensors"])
        model = adapters.without_weights(name)
        named = None if base is None else _named(model, base)
        saved = {one for one in own.where if "lora_" not in one}
        tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
        if base is None or named is None or told.get("rank_pattern") or told.get("alpha_pattern") or (tied and saved):
            return None
        low_rank = {f"{one}.weight": _low_rank(own, one, told) for one in _adapted(own)}
        if not low_rank.keys() <= named.keys() or not {_plain(one) for one in saved} <= named.keys():
            return None
        return cls(name, base, named, own, low_rank)

    def stored(self) -> Iterator[dict[str, Tensor]]:
        """Every tensor of the merged model, under its name in the base's files and in the base's precision."""
        for parameter, name in self.named.items():
            if name in self.base.where:
                base = self.base.read(name)
                yield {name: self._with_adapter(parameter, base).to(base.dtype)}
        known = set(self.named.values())
        yield from ({name: self.base.read(name)} for name in self.base.where if name not in known)

    def merged(self, parameter: str) -> Tensor:
        return self._with_adapter(parameter, self.base.read(self.named[parameter]))

    def _with_adapter(self, parameter: str, base: Tensor) -> Tensor:
        trained = f"{adapters.PREFIX}{parameter}"
        if trained in self.adapter.where:
            return self.adapter.read(trained).float()
        adapted = self.low_rank.get(parameter)
        return base.float() if adapted is None else adapted.onto(base.float())

    def of_peft(self, parameter: str) -> Tensor:
        """A parameter of peft's own model: the base's, or the adapter's."""
        name = parameter.removeprefix(adapters.PREFIX)
        if ".lora_" in name or ".modules_to_save." in name:
            return self.adapter.read(adapters.name_on_disk(name)).float()
        return self.base.read(self.named[name.replace(".base_layer.", ".")]).float()

    def change(self) -> float:
        """Of the logits, by what is going to be written and by peft's own forward pass."""
        plain = adapters.without_weights(self.name).eval()
        with torch.no_grad(), layer_by_layer(plain, self.merged):
            after = logits_of(plain)
        folder = next(iter(self.adapter.where.values())).parent
        tuned = adapters.on_base(adapters.without_weights(self.name), folder, low_cpu_mem_usage=True).eval()
        with torch.no_grad(), layer_by_layer(tuned, self.of_peft):
            before = logits_of(tuned)
        return difference(before, after)


def _plain(name: str) -> str:
    return name.removeprefix(adapters.PREFIX)


def _adapted(own: Files) -> Iterator[str]:
    """Names of modules with low-rank matrices."""
    return (_plain(name).removesuffix(".lora_A.weight") for name in own.where if name.endswith(".lora_A.weight"))


def _low_rank(own: Files, module: str, told: Mapping[str, Any]) -> LowRank:
    rank, alpha = told["r"], told["lora_alpha"]
    magnitude = f"{adapters.PREFIX}{module}.lora_magnitude_vector"
    return LowRank(
        a_RI=own.read(f"{adapters.PREFIX}{module}.lora_A.weight").float(),
        b_OR=own.read(f"{adapters.PREFIX}{module}.lora_B.weight").float(),
        scale=alpha / (rank**0.5 if told.get("use_rslora") else rank),
        magnitude_O=own.read(magnitude).float() if magnitude in own.where else None,
        transposed=bool(told.get("fan_in_fan_out")),
    )


def _named(model: nn.Module, base: Files) -> dict[str, str] | None:
    """Each parameter's tensor in the files: under its name, or without the model's prefix; a tied one's is the one it
    is tied to. None where a parameter has none: the files hold the model in another form."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        ways = [name, name.removeprefix(prefix), tied.get(name, name), tied.get(name, name).removeprefix(prefix)]
        known = next((way for way in ways if way in base.where), None)
        if known is None:
            return None
        found[name] = known
    first = {tensor: name for name, tensor in reversed(found.items())}
    return dict(sorted(found.items(), key=lambda item: first[item[1]] != item[0]))


# --- a forward pass without the model -----------------------------------------------------------------------------


@contextmanager
def layer_by_layer(model: nn.Module, read: Read) -> Iterator[None]:
    """Inside, a model without weights can be called: each layer's are read before it computes and dropped after."""
    handles = []
    for prefix, unit in _units(model, ""):
        filled = _Filled(prefix, read)
        handles += [unit.register_forward_pre_hook(filled.fill), unit.register_forward_hook(filled.drop)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Layers of a list, and whatever beside them has weights of its own."""
    for name, child in module.named_children():
        place = f"{prefix}{name}."
        if isinstance(child, nn.ModuleList):
            yield from ((f"{place}{number}.", layer) for number, layer in child.named_children())
        elif next(child.parameters(recurse=False), None) is not None or hasattr(child, "modules_to_save"):
            yield place, child
        else:
            yield from _units(child, place)


@dataclass(frozen=True)
class _Filled:
    prefix: str
    read: Read

    def fill(self, unit: nn.Module, _: Any) -> None:
        for owner, name, full in self._parameters(unit):
            owner._parameters[name] = nn.Parameter(self.read(full), requires_grad=False)

    def drop(self, unit: nn.Module, *_: Any) -> None:
        for owner, name, _full in self._parameters(unit):
            parameter = owner._parameters[name]
            assert parameter is not None
            owner._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    def _parameters(self, unit: nn.Module) -> list[tuple[nn.Module, str, str]]:
        return [
            (owner, name, f"{self.prefix}{place}.{name}" if place else f"{self.prefix}{name}")
            for place, owner in unit.named_modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None and "original_module" not in place
        ]


def _write_config(merging: Merging, adapter: Path, out: Path) -> None:
    """The base's own, with the adapter's word on where generation ends."""
    import shutil

    from transformers import AutoConfig

    AutoConfig.from_pretrained(merging.name).save_pretrained(out)
    generation = adapter / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out / generation.name)
