"""What methods and functions of torch make of split values."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from porter.facts.parallel import axes
from porter.facts.parallel.module import ModuleFacts
from porter.facts.parallel.values import WHOLE, Split, Unsplittable, Value, merge, origins_of

if TYPE_CHECKING:
    from porter.facts.parallel.flow import FileFacts, Plan

# Methods and functions that treat each element by itself.
ELEMENTWISE = frozenset(
    "float half bfloat16 double int long bool contiguous clone detach cpu cuda mul mul_ add add_ sub sub_ div div_ neg "
    "sigmoid tanh relu silu gelu softplus exp log pow square sqrt rsqrt abs clamp clip clamp_ masked_fill masked_fill_ "
    "sin cos where maximum minimum nan_to_num lerp addcmul zeros_like ones_like empty_like "
    "rand_like randn_like full_like logical_not logical_or logical_and requires_grad_ multiply true_divide "
    "dropout identity real imag conj".split()
)
# Methods whose arguments say a type or a device.
CASTS = frozenset(("to", "type", "type_as"))
# Methods that say something that is the same on all ranks, or that only shapes follow from.
ASKING = frozenset("dim size numel is_floating_point is_complex stride element_size get_device data_ptr".split())
# Reductions and whatever else goes along one axis.
ALONG = frozenset(
    "mean sum softmax log_softmax norm var std amax amin max min cumsum cumsum_ normalize argmax any all sort argsort "
    "gather".split()
)
KEEPING = frozenset("softmax log_softmax cumsum cumsum_ normalize sort argsort gather".split())
ROTATION = re.compile(r"rot|rope", re.IGNORECASE)


class TorchCalls:
    """Methods and functions of torch; see :class:`porter.facts.parallel.flow.Flow`."""

    facts: ModuleFacts
    file: FileFacts
    whole: dict[str, str]
    plan: Plan

    def edit(self, origins: frozenset[str], what: tuple[Any, ...], line: int) -> None:
        raise NotImplementedError

    def call_function(self, node: ast.FunctionDef | ast.Lambda, values: dict[str, Value]) -> Value:
        raise NotImplementedError

    def truth(self, node: ast.expr, env: dict[str, Value]) -> bool | None:
        raise NotImplementedError

    def value(self, node: ast.expr, env: dict[str, Value]) -> Value:
        raise NotImplementedError

    def _inline(
        self,
        node: ast.FunctionDef | ast.Lambda,
        positional: list[Value],
        keywords: dict[str, Value],
        around: dict[str, Value],
        fallback: tuple[ast.Call, ...] = (),
    ) -> Value:
        raise NotImplementedError

    def _by_numbers(self, value: Value, others: list[Value], line: int) -> None:
        """A width of which this rank holds a part goes with other such widths and numbers, not with whole tensors."""
        split = value.split
        if split is None or not split.flat:
            return
        for other in others:
            if not other.splits() and other.kind not in ("number", "none", "attribute", "head"):
                raise Unsplittable(split.origins, "is combined with a whole tensor", line)

    def _product(self, values: list[Value], line: int) -> Value:
        """Matrix products: heads may be an axis that is not multiplied over, on both sides alike."""
        splits = [value.split for value in values]
        if not any(splits):
            return WHOLE
        first = next(split for split in splits if split)
        if (
            any(s is None or (s.axis, s.ndim) != (first.axis, first.ndim) for s in splits)
            or first.axis >= first.ndim - 2
        ):
            raise Unsplittable(origins_of(*values), "is multiplied along its split axis", line)
        return merge(values, line)

    def _used(self, split: Split) -> None:
        if split.direct and split.direct not in self.plan.hinted:
            self.plan.plain.add(split.direct)

    def _method(
        self, base: Value, name: str, positional: list[Value], keywords: dict[str, Value], node: ast.Call
    ) -> Value:
        split = base.split
        assert split is not None
        line = node.lineno
        if name in ASKING:
            if name == "size":
                place = axes.integer(positional[0]) if positional else None
                if place is None:
                    return Value(kind="shape", what=split)
                return Value(kind="width" if split.flat else "heads") if place % split.ndim == split.axis else WHOLE
            return WHOLE
        if name in CASTS:
            return base
        if name in ELEMENTWISE:
            self._by_numbers(base, [*positional, *keywords.values()], line)
            return merge([base, *(v for v in [*positional, *keywords.values()] if v.splits())], line)
        return self._axes(base, split, name, positional, keywords, line)

    def _axes(
        self, base: Value, split: Split, name: str, positional: list[Value], keywords: dict[str, Value], line: int
    ) -> Value:
        numbers = [axes.integer(value) for value in positional]
        if name in ("transpose", "swapaxes", "transpose_") and len(numbers) == 2 and None not in numbers:
            return Value(axes.transposed(split, int(numbers[0] or 0), int(numbers[1] or 0)))
        if name == "permute":
            order = [axes.integer(v) for v in (positional[0].items or ()) if v] if len(positional) == 1 else numbers
            if order and None not in order:
                return Value(axes.permuted(split, [int(place or 0) for place in order]))
        if name == "unflatten" and len(positional) == 2 and positional[1].items and numbers[0] is not None:
            self._used(split)
            return Value(axes.unflattened(split, numbers[0], list(positional[1].items), line))
        if name == "flatten":
            given = [*numbers, *(axes.integer(v) for v in keywords.values())]
            first, last = (given + [-1])[:2] if given else (0, -1)
            if first is not None and last is not None:
                return Value(axes.flattened(split, first, last, line))
        if name in ("view", "reshape"):
            sizes = list(positional[0].items) if len(positional) == 1 and positional[0].items else positional
            return self._reshape(split, sizes, line)
        if name in ("unsqueeze", "squeeze") and len(numbers) == 1 and numbers[0] is not None:
            return self._squeezed(split, name, numbers[0], line)
        if name in ("chunk", "split", "split_with_sizes", "unbind", "tensor_split"):
            return self._pieces(base, split, name, positional, keywords, line)
        if name in ("expand", "repeat", "repeat_interleave"):
            return self._repeated(split, name, positional, keywords, line)
        if name in ALONG:
            axis = keywords.get("dim", keywords.get("axis", positional[0] if positional else WHOLE))
            place = axes.integer(axis)
            if place is not None and place % split.ndim != split.axis:
                kept = Value(replace(split, direct=None))
                if name == "sort":
                    return Value(items=(kept, kept))
                if name in KEEPING or "keepdim" in keywords:
                    return kept
                fewer = split.axis - (1 if place % split.ndim < split.axis else 0)
                return Value(replace(split, axis=fewer, ndim=split.ndim - 1, direct=None))
        if name == "view_as" or name == "expand_as":
            return merge([base, *positional], line)
        raise Unsplittable(split.origins, f"goes through .{name}()", line)

    def _reshape(self, split: Split, sizes: list[Value], line: int) -> Value:
        self._used(split)
        self.plan.widths |= {size.what for size in sizes if size.kind == "width" and size.what}
        starred = False
        if sizes and sizes[0].kind == "starred":
            inner = sizes[0].what
            if inner.kind == "shape" and len(sizes) == 1:
                return Value(
                    replace(split, axis=inner.what.axis, ndim=inner.what.ndim, flat=inner.what.flat, direct=None)
                )
            starred, sizes = True, sizes[1:]
        if len(sizes) == 1 and sizes[0].kind == "shape":
            other = sizes[0].what
            return Value(replace(split, axis=other.axis, ndim=other.ndim, flat=other.flat, direct=None))
        packed = self._parts_before_heads(split, sizes)
        if packed is not None:
            return packed
        if any(size.kind == "starred" for size in sizes):
            raise Unsplittable(split.origins, "is reshaped to sizes that are not known", line)
        return Value(axes.reshaped(split, sizes, starred, line))

    def _parts_before_heads(self, split: Split, sizes: list[Value]) -> Value | None:
        """``x.reshape(batch, length, 3, heads, head_size)`` of a projection's output."""
        heads = [place for place, size in enumerate(sizes) if size.kind == "heads"]
        if len(heads) != 1 or not split.direct or not split.flat or not split.last or heads[0] < 1:
            return None
        count = axes.integer(sizes[heads[0] - 1])
        if count is None or count < 2 or self.plan.packed.setdefault(split.direct, count) != count:
            return None
        self.plan.plain.discard(split.direct)
        return Value(replace(split, axis=heads[0], ndim=len(sizes), flat=False, direct=None))

    def _squeezed(self, split: Split, name: str, place: int, line: int) -> Value:
        if name == "unsqueeze":
            place = place % (split.ndim + 1)
            return Value(
                replace(split, ndim=split.ndim + 1, axis=split.axis + (1 if place <= split.axis else 0), direct=None)
            )
        place = place % split.ndim
        if place == split.axis:
            raise Unsplittable(split.origins, "loses its split axis", line)
        return Value(
            replace(split, ndim=split.ndim - 1, axis=split.axis - (1 if place < split.axis else 0), direct=None)
        )

    def _pieces(
        self, base: Value, split: Split, name: str, positional: list[Value], keywords: dict[str, Value], line: int
    ) -> Value:
        default = Value(kind="number", what=0)
        axis = keywords.get("dim", positional[1] if len(positional) > 1 else default)
        if name == "unbind":
            axis = keywords.get("dim", positional[0] if positional else default)
        place = axes.integer(axis)
        if place is None:
            raise Unsplittable(split.origins, "is taken apart along some axis", line)
        place %= split.ndim
        sizes = positional[0] if positional else WHOLE
        if name == "unbind":
            if place == split.axis:
                raise Unsplittable(split.origins, "is taken apart along its split axis", line)
            fewer = split.axis - (1 if place < split.axis else 0)
            return Value(replace(split, axis=fewer, ndim=split.ndim - 1, direct=None), kind="pieces")
        count = axes.integer(sizes) if name == "chunk" else len(sizes.items) if sizes.items else None
        if place != split.axis:
            piece = Value(replace(split, direct=None))
            return Value(items=(piece,) * count) if count else Value(items=None, split=piece.split, kind="pieces")
        if count and split.direct and split.flat and split.direct in self.plan.hinted:
            self.plan.packed[split.direct] = 0  # the widths are known from the source
            return Value(items=(base,) * count)
        if name == "chunk" and count and split.direct and split.flat:
            if self.plan.packed.setdefault(split.direct, count) != count:
                raise Unsplittable(split.origins, "is taken apart in several ways", line)
            return Value(items=(Value(replace(split, direct=None)),) * count)
        raise Unsplittable(split.origins, "is taken apart along its split axis", line)

    def _repeated(
        self, split: Split, name: str, positional: list[Value], keywords: dict[str, Value], line: int
    ) -> Value:
        if name == "repeat_interleave":
            place = axes.integer(keywords.get("dim", positional[1] if len(positional) > 1 else WHOLE))
            if place is not None and (place % split.ndim != split.axis or not split.flat):
                return Value(replace(split, direct=None))  # heads of keys repeated for the queries of their group
        elif len(positional) >= split.ndim:
            more = len(positional) - split.ndim
            kept = positional[split.axis + more]
            if axes.integer(kept) in (-1, 1) if name == "repeat" else True:
                return Value(replace(split, axis=split.axis + more, ndim=split.ndim + more, direct=None))
        raise Unsplittable(split.origins, "is repeated along its split axis", line)

    def _library(self, name: str, positional: list[Value], keywords: dict[str, Value], node: ast.Call) -> Value:
        values = [*positional, *keywords.values()]
        if not origins_of(*values):
            return Value(kind="list", items=()) if name == "list" and not values else WHOLE
        short = name.split(".")[-1]
        line = node.lineno
        if name == "map" and len(positional) == 2 and positional[1].items and positional[0].kind == "function":
            closure = positional[0].what
            return Value(items=tuple(self._inline(closure.node, [i], {}, closure.around) for i in positional[1].items))
        if name == "AttentionMetadata":
            return Value(items=tuple(value for value in values if value.splits()))
        if name in ("len", "isinstance", "print", "hasattr", "type"):
            return WHOLE
        if name in ("tuple", "list", "iter") and len(positional) == 1:
            return positional[0]
        if short in ("cat", "concat", "concatenate", "stack"):
            return self._joined(short, positional, keywords, line)
        if name.endswith("BlockMask.from_kv_blocks") and positional[0].split is not None:
            return Value(replace(positional[0].split, direct=None))  # a mask of blocks for each head
        if short == "scaled_dot_product_attention":
            return self._plain_attention(positional, keywords, line)
        if short in ("matmul", "bmm"):
            return self._product(positional[:2], line)
        if short == "pad" and positional and positional[0].split:
            widths = positional[1].items if len(positional) > 1 else None
            split = positional[0].split
            reach = split.ndim - 1 - len(widths) // 2 if widths else split.ndim
            behind = 2 * (split.ndim - 1 - split.axis)
            zero = widths is not None and all(axes.integer(v) == 0 for v in widths[behind : behind + 2])
            if widths is not None and (split.axis <= reach or zero):
                return Value(replace(split, direct=None))
        if ROTATION.search(short):
            return self._rotation(positional, keywords, node)
        if not name.startswith(("torch.", "F.", "nn.functional", "torch.nn.functional")):
            raise Unsplittable(origins_of(*values), f"is handed to {name}", line)
        if short in ELEMENTWISE or short in ("view_as_complex", "view_as_real"):
            merged = merge([value for value in values if value.splits()], line)
            assert merged.split is not None
            if short == "view_as_real":
                return Value(replace(merged.split, ndim=merged.split.ndim + 1))
            if short == "view_as_complex":
                return Value(replace(merged.split, ndim=merged.split.ndim - 1))
            return merged
        if positional and positional[0].split is not None and not origins_of(*values[1:]):
            return self._axes(positional[0], positional[0].split, short, positional[1:], keywords, line)
        raise Unsplittable(origins_of(*values), f"is handed to {name}", line)

    def _plain_attention(self, positional: list[Value], keywords: dict[str, Value], line: int) -> Value:
        values = positional[:3]
        for value in values:
            split = value.split
            if split is None or split.flat or split.axis != split.ndim - 3:
                raise Unsplittable(origins_of(*positional), "reaches attention without heads that are split", line)
        result = merge(values, line)
        assert result.split is not None
        self.plan.attended |= result.split.origins
        return Value(replace(result.split, attended=True, direct=None))

    def _joined(self, name: str, positional: list[Value], keywords: dict[str, Value], line: int) -> Value:
        given = positional[0].items if positional else None
        axis = keywords.get(
            "dim", keywords.get("axis", positional[1] if len(positional) > 1 else Value(kind="number", what=0))
        )
        place = axes.integer(axis)
        values = list(given or ())
        everything = origins_of(*positional)
        if place is None or not values or any(value.split is None for value in values):
            raise Unsplittable(everything, "is joined to whole values", line)
        splits = [value.split for value in values if value.split]
        if name == "stack":
            merged = merge([Value(replace(s, direct=None)) for s in splits], line).split
            assert merged is not None
            place = place % (merged.ndim + 1)
            return Value(replace(merged, ndim=merged.ndim + 1, axis=merged.axis + (1 if place <= merged.axis else 0)))
        if place % splits[0].ndim == splits[0].axis:
            if not all(split.flat and split.last and not split.parts for split in splits):
                raise Unsplittable(everything, "is joined along its split axis", line)
            for split in splits:
                self._used(split)
            merged = merge([Value(replace(s, direct=None)) for s in splits], line).split
            assert merged is not None
            return Value(replace(merged, parts=tuple(split.origins for split in splits)))
        for split in splits:
            self._used(split)
        return merge([Value(replace(s, direct=None)) for s in splits], line)

    def _rotation(self, positional: list[Value], keywords: dict[str, Value], node: ast.Call) -> Value:
        """A position embedding by a function that is not followed: it turns pairs within a head.

        On a width (all heads in one axis) its tables are as wide, and this rank's part of them is due.
        """
        values = [*positional, *keywords.values()]
        turned = [value for value in values if value.split is not None]
        if any(value.items is not None and value.splits() for value in values):
            raise Unsplittable(origins_of(*values), f"is handed to {ast.unparse(node.func)}", node.lineno)
        for value in turned:
            split = value.split
            assert split is not None
            if split.flat:
                if len(turned) != 1 or not positional or positional[0].split is None:
                    raise Unsplittable(split.origins, "is rotated as one width", node.lineno)
                self.edit(split.origins, ("table", ast.unparse(node)), node.lineno)
            elif split.last:
                raise Unsplittable(split.origins, "is rotated along its split axis", node.lineno)
        results: list[Any] = [Value(replace(v.split, direct=None)) for v in turned if v.split]
        return results[0] if len(results) == 1 else Value(items=tuple(results))
