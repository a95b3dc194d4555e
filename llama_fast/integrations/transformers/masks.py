"""Attention masks of transformers, as options of our op instead of a (B,1,S,T) tensor.

transformers builds the mask of a forward pass once, through a function that each attention
implementation registers (`AttentionMaskInterface`). Ours returns None for plain causal attention, a
:class:`Mask` if the mask consists of a window, padding or packed documents, and otherwise the
boolean tensor that "sdpa" gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import masking_utils


@dataclass(eq=False)
class Mask:
    """A mask as options of :func:`llama_fast.attention`.

    Indexing, operators and torch functions use the boolean tensor (B,1,S,T), True where a query
    sees a key, so that models may edit their masks.

    Attributes:
        causal: query i of S sees the first ``T - S + i + 1`` keys.
        window: (left, right) as in `llama_fast.attention`, or None.
        padding: bool (B,T), True where a key is padding, or None.
        cu_seqlens: int32 offsets of the documents in the B*S tokens, and B*S; or None.
        keys: T, the number of keys in use; a static cache may be longer.
        make: function that computes the boolean tensor.
        mask_shape: shape of that tensor.
    """

    causal: bool
    window: tuple[int, int] | None
    padding: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    keys: int
    make: Callable[[], torch.Tensor]
    mask_shape: tuple[int, int, int, int]
    _tensor: torch.Tensor | None = field(default=None, init=False, repr=False)

    @property
    def shape(self) -> torch.Size:
        """(B,1,S,T)."""
        return torch.Size(self.mask_shape)

    @property
    def ndim(self) -> int:
        """4, the number of dimensions."""
        return 4

    def dense(self) -> torch.Tensor:
        """The boolean tensor (B,1,S,T)."""
        if self._tensor is None:
            self._tensor = self.make()
        return self._tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # names that Python looks up itself, as for copies
            raise AttributeError(name)
        return getattr(self.dense(), name)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.dense()[index]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*_with_tensors(args), **_with_tensors(kwargs or {}))


def _with_tensors(value: Any) -> Any:
    """`value` with each mask in it replaced by its tensor."""
    if isinstance(value, Mask):
        return value.dense()
    if isinstance(value, (tuple, list)):
        return type(value)(_with_tensors(part) for part in value)
    if isinstance(value, dict):
        return {key: _with_tensors(part) for key, part in value.items()}
    return value


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Mask, *args: Any) -> Any:
        return getattr(self.dense(), name)(*args)

    return method


for _name in ("add", "radd", "mul", "rmul", "sub", "rsub", "and", "or", "invert", "lt", "gt"):
    setattr(Mask, f"__{_name}__", _operator(f"__{_name}__"))


def mask_function(
    batch_size: int,
    q_length: int | None = None,
    kv_length: int = 0,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Any = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    config: Any = None,
    **options: Any,
) -> Any:
    """The mask of a forward pass for `attn_implementation="llama_fast"`.

    Args:
        batch_size: B.
        q_length: S. transformers before 5.4 passes `cache_position` (S,) in `options` instead.
        kv_length: T.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: transformers' predicate over (batch, head, query, key) indices.
        attention_mask: bool (B, positions), False for padding, or None.
        local_size: size of a window or chunk in `mask_function`.
        allow_is_causal_skip: False if the model added something to the causal mask.
        allow_is_bidirectional_skip: whether the mask is at most padding and a window.
        use_vmap: whether `mask_function` contains a function of the user.
        config: the model's configuration.
        **options: other arguments of transformers.

    Returns:
        None, a :class:`Mask`, or a bool tensor (B,1,S,T).
    """
    if isinstance(attention_mask, Mask):  # generation made it before the forward pass
        return attention_mask
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() != 2:
        return attention_mask
    where: dict[str, Any] = {"q_length": q_length, "q_offset": q_offset}
    if q_length is None:
        position = options.pop("cache_position")
        q_length, where = position.shape[0], {"cache_position": position}
        q_offset = position[0]

    def dense() -> torch.Tensor:
        result = masking_utils.sdpa_mask(
            batch_size=batch_size,
            kv_length=kv_length,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            use_vmap=use_vmap,
            config=config,
            **where,
            **options,
        )
        assert isinstance(result, torch.Tensor)
        return result

    pattern = _pattern(mask_function, local_size, config, use_vmap)
    if pattern is None or (isinstance(q_offset, torch.Tensor) and torch.compiler.is_compiling()):
        return dense()
    causal, window, packed = pattern
    keys = kv_length
    if causal:  # the cache beyond the last query is still empty
        keys = int(q_offset) + q_length - kv_offset
        if keys > kv_length:
            return dense()
    elif window is not None and (q_length != kv_length or int(q_offset) != kv_offset):
        return dense()
    padding = _padding(attention_mask, kv_offset, keys)
    if window is not None and window[0] >= keys - 1:
        window = None if causal or window[1] >= keys - 1 else window
    if packed is None and padding is None and window is None:
        if not causal and (allow_is_bidirectional_skip or keys == kv_length):
            return None
        if causal and keys == kv_length and q_length in (1, keys):
            return None
    cu_seqlens = None if packed is None else _starts(packed)
    if attention_mask is not None:  # `dense` may run after the caller has changed it
        attention_mask = attention_mask.clone()
    mask_shape = (batch_size, 1, q_length, kv_length)
    return Mask(causal, window, padding, cu_seqlens, keys, dense, mask_shape)


def _pattern(
    function: Callable[..., Any], local_size: int | None, config: Any, use_vmap: bool
) -> tuple[bool, tuple[int, int] | None, torch.Tensor | None] | None:
    """(causal, window, document ids (B,S)) if `function` consists of these, else None."""
    if use_vmap:
        return None
    if function is masking_utils.causal_mask_function:
        return True, None, None
    if function is masking_utils.bidirectional_mask_function:
        return False, None, None
    if torch.compiler.is_compiling():  # closures cannot be inspected there
        return None
    causal, windows, packed = None, [], []
    for part in _parts(function):
        name = part.__qualname__.removesuffix(".<locals>.inner_mask")
        closure = dict(zip(part.__code__.co_freevars, part.__closure__ or (), strict=True))
        if part is masking_utils.causal_mask_function:
            causal = True
        elif part is masking_utils.bidirectional_mask_function:
            causal = causal or False
        elif part.__module__ != masking_utils.__name__:
            return None
        elif name == "sliding_window_overlay":
            windows.append((closure["sliding_window"].cell_contents - 1, 0))
        elif name == "sliding_window_bidirectional_overlay":
            windows.append((closure["sliding_window"].cell_contents,) * 2)
        elif name == "packed_sequence_mask_function":
            packed.append(closure["packed_sequence_mask"].cell_contents)
        else:
            return None
    if causal is None or len(windows) > 1 or len(packed) > 1:
        return None
    return causal, windows[0] if windows else None, packed[0] if packed else None


def _parts(function: Callable[..., Any]) -> list[Any]:
    """The functions that `function` combines by "and"; remapped positions count as positions."""
    if function.__module__ == masking_utils.__name__ and function.__closure__:
        if function.__qualname__ == "and_masks.<locals>.and_mask":
            closure = function.__closure__[0].cell_contents
            return [part for item in closure for part in _parts(item)]
        if function.__qualname__.startswith("remap_positions_for_packed_sequence."):
            closure = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
            return _parts(closure["mask_function"].cell_contents)
    return [function]


def _padding(kept: torch.Tensor | None, first: int, keys: int) -> torch.Tensor | None:
    """(B,keys), True for padding, from transformers' mask; None without padding."""
    if kept is None:
        return None
    kept = kept[:, first : first + keys]
    if not torch.compiler.is_compiling() and kept.shape[1] == keys and bool(kept.all()):
        return None
    padding = ~kept.bool()
    return torch.nn.functional.pad(padding, (0, keys - padding.shape[1]), value=True)


def _starts(ids: torch.Tensor) -> torch.Tensor:
    """Offsets of the documents in the B*S tokens, and B*S; each row starts a document."""
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    return torch.nn.functional.pad(starts, (0, 1), value=ids.numel()).to(torch.int32)
