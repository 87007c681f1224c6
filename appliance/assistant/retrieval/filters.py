"""OpenAI's attribute filters, compiled to a predicate over the attributes of a file.

Comparisons: `eq`, `ne`, `gt`, `gte`, `lt`, `lte` with a string, number or boolean; `in`, `nin` with a list of them.
Compounds: `and`, `or` over at least one filter. The rules that OpenAI's reference leaves open:

- A missing attribute equals no value: `ne` and `nin` accept it, every other comparison rejects it.
- Values of different types are never equal and have no order. A boolean is not a number.
- Strings are ordered by code point, so ISO dates are ordered by time. Booleans have no order.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from appliance.errors import InvalidRequestError

AttributeValue = str | float | bool
Attributes = Mapping[str, AttributeValue]
Predicate = Callable[[Attributes], bool]

MAX_DEPTH = 16
"""Compounds inside one another."""
MAX_COMPARISONS = 256
"""Comparisons of one filter, and values of one list."""

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_COMPARISONS = ("eq", "ne", *_ORDERS, "in", "nin")


def compile_filter(value: object, *, param: str = "filters") -> Predicate:
    """Return the predicate of a filter as parsed from JSON.

    Args:
        value: The filter: an object with `type`, and `key` and `value` or `filters`.
        param: The name of the field, with which each error's `param` begins.

    Raises:
        InvalidRequestError: The filter is not valid; `param` is the path of the offending field.
    """
    return _compile(value, param, depth=1, left=[MAX_COMPARISONS], whole=param)


def _compile(value: object, param: str, *, depth: int, left: list[int], whole: str) -> Predicate:
    """Return the predicate of one filter; ``left[0]`` is the number of comparisons that may follow."""
    if not isinstance(value, dict):
        raise InvalidRequestError("a filter is an object with the field type", param=param)
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"the filter has more than {MAX_DEPTH} levels", param=whole)
    kind = value.get("type")
    if kind in ("and", "or"):
        return _compound(value, param, depth=depth, left=left, whole=whole)
    if kind in _COMPARISONS:
        left[0] -= 1
        if left[0] < 0:
            raise InvalidRequestError(f"the filter has more than {MAX_COMPARISONS} comparisons", param=whole)
        return _comparison(value, param)
    names = ", ".join((*_COMPARISONS, "and", "or"))
    raise InvalidRequestError(f"the type of a filter is one of {names}", param=f"{param}.type")


def _compound(value: dict[Any, Any], param: str, *, depth: int, left: list[int], whole: str) -> Predicate:
    _check_fields(value, {"type", "filters"}, param)
    filters = value.get("filters")
    if not isinstance(filters, list) or not filters:
        raise InvalidRequestError("a compound filter has a list of at least one filter", param=f"{param}.filters")
    parts = [
        _compile(one, f"{param}.filters[{number}]", depth=depth + 1, left=left, whole=whole)
        for number, one in enumerate(filters)
    ]
    combine = all if value["type"] == "and" else any
    return lambda attributes: combine(part(attributes) for part in parts)


def _comparison(value: dict[Any, Any], param: str) -> Predicate:
    _check_fields(value, {"type", "key", "value"}, param)
    kind, key = value["type"], value.get("key")
    if not isinstance(key, str) or not key:
        raise InvalidRequestError("the key of a comparison is a string that is not empty", param=f"{param}.key")
    if kind in ("in", "nin"):
        listed = value.get("value")
        if not isinstance(listed, list) or len(listed) > MAX_COMPARISONS:
            raise InvalidRequestError(
                f"the value of {kind} is a list of at most {MAX_COMPARISONS} strings, numbers or booleans",
                param=f"{param}.value",
            )
        members = frozenset(_typed(one, f"{param}.value[{number}]") for number, one in enumerate(listed))
        return lambda attributes: _is_member(attributes, key, members) is (kind == "in")
    kind_of, wanted = _typed(value.get("value"), f"{param}.value")
    if kind in ("eq", "ne"):
        members = frozenset([(kind_of, wanted)])
        return lambda attributes: _is_member(attributes, key, members) is (kind == "eq")
    if kind_of is bool:
        raise InvalidRequestError(f"{kind} compares numbers or strings; use eq or ne", param=f"{param}.value")
    compare = _ORDERS[kind]

    def ordered(attributes: Attributes) -> bool:
        if key not in attributes:
            return False
        its_kind, its_value = _type_and_value(attributes[key])
        return its_kind is kind_of and compare(its_value, wanted)

    return ordered


def _is_member(attributes: Attributes, key: str, members: frozenset[tuple[type, AttributeValue]]) -> bool:
    return key in attributes and _type_and_value(attributes[key]) in members


def _type_and_value(value: AttributeValue) -> tuple[type, AttributeValue]:
    """Return the type of ``value`` (str, bool or float) and the value; int and float are one type."""
    return (type(value) if isinstance(value, (str, bool)) else float), value


def _typed(value: object, param: str) -> tuple[type, AttributeValue]:
    if isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return _type_and_value(value)
    raise InvalidRequestError("a compared value is a string, a finite number or a boolean", param=param)


def _check_fields(value: dict[Any, Any], allowed: set[str], param: str) -> None:
    for name in value:
        if name not in allowed:
            raise InvalidRequestError(
                f"{str(name)[:64]!r} is not a field of this filter; use {', '.join(sorted(allowed))}",
                param=f"{param}.{str(name)[:64]}",
            )
