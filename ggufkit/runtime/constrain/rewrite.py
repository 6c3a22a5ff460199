"""JSON schemas in the keywords that a grammar can be made of.

not, if and then and else, oneOf     what is not is said by what there is instead: {"not": {"type": "null"}}
dependentRequired, dependentSchemas  either it is not there, or what it needs is
propertyNames                        patternProperties, or properties and no others
contains, minContains, maxContains   one of the first items is such a one
uniqueItems                          of few values: all their orders
unevaluatedProperties and …Items     additionalProperties and items, where no other part evaluates any

Whatever the result describes obeys the schema. It may describe less: a model is held to it, nothing is judged by it.
What cannot be said stays as it is, and is refused where the grammar is made.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["rewritten"]

_PARTS = 20_000  # schemas that are made at most: opposites of opposites grow
_PLACES = 4  # among which one item is such a one
_VALUES = 5  # whose orders are written down
_STRING = 2000  # characters of the texts that another must differ from

_TYPES = ("null", "boolean", "object", "array", "number", "string")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONES = {"items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else"}
_ONES |= {"unevaluatedProperties", "unevaluatedItems"}
_REMARKS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema"}
_REMARKS |= {"$id", "$defs", "definitions", "$anchor"}
_COUNTS = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
_COUNTS |= {"minContains", "maxContains"}
# What evaluates items and properties besides a schema's own keywords.
_IN_PLACE = ("anyOf", "oneOf", "if", "$ref", "$dynamicRef", "dependentSchemas", "contains", "allOf")

Schema = Any  # a mapping, True or False


def rewritten(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without the keywords above, as far as they can be said by others."""
    try:
        found = _Rewriter(schema).schema(schema)
    except _TooLarge:
        return dict(schema)
    assert isinstance(found, dict)
    return found


class _TooLarge(Exception):
    pass


class _Rewriter:
    def __init__(self, root: Mapping[str, Any]):
        self.root, self.left = root, _PARTS

    def schema(self, schema: Schema) -> Schema:
        """A schema and all in it."""
        if not isinstance(schema, Mapping):
            return schema
        self._count()
        given = dict(schema)
        for key in _COUNTS:
            if isinstance(given.get(key), float) and given[key].is_integer():
                given[key] = int(given[key])
        more: list[Schema] = []
        for rewrite in (
            self._unevaluated,  # first: it looks at what others take away
            self._negated,
            self._conditional,
            self._exactly_one,
            self._dependent,
            self._named,
            self._containing,
            self._unique,
        ):
            more += rewrite(given)
        found = {key: self._within(key, value) for key, value in given.items()}
        if more:
            found["allOf"] = [*found.get("allOf", []), *more]
        return found

    def _within(self, key: str, value: Any) -> Any:
        if key in _MAPS and isinstance(value, Mapping):
            return {name: self.schema(part) for name, part in value.items()}
        if key in _LISTS and isinstance(value, list):
            return [self.schema(part) for part in value]
        return self.schema(value) if key in _ONES else value

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _TooLarge

    # -- keywords: each takes what it can say from the schema, and gives what must hold besides ------------------

    def _negated(self, given: dict[str, Any]) -> Iterator[Schema]:
        if (opposite := self._opposite(given.get("not"))) is not None:
            del given["not"]
            yield opposite

    def _conditional(self, given: dict[str, Any]) -> Iterator[Schema]:
        condition, then, otherwise = given.get("if"), given.get("then", True), given.get("else", True)
        opposite = False if condition is None else self._opposite(condition)
        if opposite is None:
            return
        for key in ("if", "then", "else"):
            given.pop(key, None)
        if condition is not None and (then, otherwise) != (True, True):
            yield _any([_all(map(self.schema, (condition, then))), _all([opposite, self.schema(otherwise)])])

    def _exactly_one(self, given: dict[str, Any]) -> Iterator[Schema]:
        options = given.get("oneOf")
        if not isinstance(options, list) or len(options) > 8:
            return
        if all(self._apart(a, b) for a, b in itertools.combinations(options, 2)):
            return  # llguidance sees that, too
        opposites = [self._opposite(option) for option in options]
        if None in opposites:
            return
        del given["oneOf"]
        yield _any(
            _all([self.schema(option), *opposites[:number], *opposites[number + 1 :]])
            for number, option in enumerate(options)
        )

    def _dependent(self, given: dict[str, Any]) -> Iterator[Schema]:
        found: dict[str, Schema] = {}
        for key in ("dependentRequired", "dependentSchemas", "dependencies"):
            if isinstance(given.get(key), Mapping):
                for name, needs in given.pop(key).items():
                    needed = {"type": "object", "required": needs} if isinstance(needs, list) else self.schema(needs)
                    found[name] = _all([found.get(name, True), needed])
        for name, needed in found.items():
            has = {"type": "object", "properties": {name: True}, "required": [name]}  # in this order it is written
            yield _any([_all([has, needed]), self._opposite({"type": "object", "required": [name]})])

    def _named(self, given: dict[str, Any]) -> Iterator[Schema]:
        names = given.get("propertyNames")
        if names is None or "patternProperties" in given:
            return
        properties, others = given.get("properties", {}), given.get("additionalProperties", True)
        if names is True or names == {}:
            del given["propertyNames"]
        elif names is False:
            del given["propertyNames"]
            yield _any([{"type": "object", "maxProperties": 0}, _others("object")])
        elif isinstance(names, Mapping):
            options = [names["const"]] if "const" in names else names.get("enum")
            rest = set(names) - _REMARKS - {"type", "const", "enum"}
            if isinstance(options, list) and not rest:
                options = [name for name in options if isinstance(name, str)]
                given["properties"] = {name: properties.get(name, others) for name in options}
                given["additionalProperties"] = False
            elif (pattern := _pattern_of(names)) is not None and not properties and options is None:
                given["patternProperties"], given["additionalProperties"] = {pattern: others}, False
            else:
                return
            del given["propertyNames"]

    def _containing(self, given: dict[str, Any]) -> Iterator[Schema]:
        least, most, wanted = given.get("minContains", 1), given.get("maxContains"), given.get("contains")
        if wanted is None:
            given.pop("minContains", None)
            given.pop("maxContains", None)
            return
        others = True if most is None else self._opposite(wanted)
        if least > 1 or (most is not None and most != 1) or others is None:
            return
        for key in ("contains", "minContains", "maxContains"):
            given.pop(key, None)
        if not least and most is None:
            return
        such = self.schema(wanted)
        places = [
            {"type": "array", "prefixItems": [*[others] * at, such], "items": others, "minItems": at + 1}
            for at in range(_PLACES)
        ]
        none = [{"type": "array", "items": others}] if not least else []
        yield _any([*places, *none, _others("array")])

    def _unique(self, given: dict[str, Any]) -> Iterator[Schema]:
        if given.get("uniqueItems") is not True:
            given.pop("uniqueItems", None)
            return
        values = _values(given.get("items"))
        most = given.get("maxItems")
        if most in (0, 1):
            del given["uniqueItems"]
        elif values is not None and len(values) <= _VALUES and "prefixItems" not in given:
            del given["uniqueItems"], given["items"]
            orders = (
                order
                for n in range(given.pop("minItems", 0), min(len(values), given.pop("maxItems", len(values))) + 1)
                for order in itertools.permutations(values, n)
            )
            yield _any([{"enum": [list(order) for order in orders]}, _others("array")])

    def _unevaluated(self, given: dict[str, Any]) -> Iterator[Schema]:
        if not any(key in given for key in _IN_PLACE):
            for key, own in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
                if key in given:
                    given.setdefault(own, given.pop(key))
        elif given.get("unevaluatedProperties") is False and (names := self._evaluated(given)) is not None:
            del given["unevaluatedProperties"]
            given["properties"] = {**dict.fromkeys(names, True), **given.get("properties", {})}
            given["additionalProperties"] = False
        yield from ()

    def _evaluated(self, schema: Schema) -> list[str] | None:
        """The properties that a schema and those that must hold with it evaluate; None: it depends."""
        if not isinstance(schema, Mapping):
            return []
        self._count()
        if any(key in schema for key in _IN_PLACE if key not in ("allOf", "$ref")) or "patternProperties" in schema:
            return None
        if "additionalProperties" in schema:
            return None
        found = list(schema.get("properties", {}))
        for part in [*schema.get("allOf", []), *([self._at(schema["$ref"])] if "$ref" in schema else [])]:
            names = self._evaluated(part)
            if names is None:
                return None
            found += names
        return found

    # -- opposites ----------------------------------------------------------------------------------------------

    def _opposite(self, schema: Schema) -> Schema | None:
        """What obeys this obeys the schema not; None where that cannot be said."""
        self._count()
        if isinstance(schema, bool):
            return not schema
        if not isinstance(schema, Mapping):
            return None
        options: list[Schema] = []
        for key, value in schema.items():
            if key in _REMARKS:
                continue
            option = self._opposite_of(key, value)
            if option is None:
                return None
            options.append(option)
        return _any(options)

    def _opposite_of(self, key: str, value: Any) -> Schema | None:
        """What does not obey one keyword."""
        if key == "type":
            return _others(*([value] if isinstance(value, str) else value))
        if key in ("const", "enum"):
            return _other_than([value] if key == "const" else value)
        if key == "not":
            return self.schema(value)
        if key == "$ref":
            return self._opposite(self._at(value))
        if key in ("anyOf", "allOf"):
            parts = [self._opposite(part) for part in value]
            return None if None in parts else _all(parts) if key == "anyOf" else _any(parts)
        if key == "required":
            return _any({"type": "object", "properties": {name: False}} for name in value) if value else False
        if key == "properties":
            opposites = {name: self._opposite(part) for name, part in value.items()}
            if None in opposites.values():
                return None
            return _any(
                {"type": "object", "required": [name], "properties": {name: part}} if part is not False else False
                for name, part in opposites.items()
            )
        bounds = {"minimum": "exclusiveMaximum", "maximum": "exclusiveMinimum"}
        bounds |= {"exclusiveMinimum": "maximum", "exclusiveMaximum": "minimum"}
        if key in bounds:
            return {"type": "number", bounds[key]: value}
        what = {"Length": "string", "Items": "array", "Properties": "object"}.get(key[3:])
        if what is not None and key.startswith("min"):
            return {"type": what, f"max{key[3:]}": int(value) - 1} if value else False
        if what is not None and key.startswith("max"):
            return {"type": what, f"min{key[3:]}": int(value) + 1}
        return None

    def _at(self, reference: Any) -> Schema:
        """What a reference within the schema names; something without an opposite where that is unclear."""
        self._count()
        found: Any = self.root
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        for step in reference[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def _apart(self, a: Schema, b: Schema, depth: int = 0) -> bool:
        """Whether it is plain to see that nothing obeys both."""
        a, b = (self._at(one["$ref"]) if isinstance(one, Mapping) and "$ref" in one else one for one in (a, b))
        if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
            return a is False or b is False
        kinds = [{one["type"]} if isinstance(one.get("type"), str) else set(one.get("type", ())) for one in (a, b)]
        kinds = [kind | {"integer"} if "number" in kind else kind for kind in kinds]
        if all(kinds) and not kinds[0] & kinds[1]:
            return True
        values = [_values(one) for one in (a, b)]
        if values[0] is not None and values[1] is not None:
            return not {json.dumps(value) for value in values[0]} & {json.dumps(value) for value in values[1]}
        both = set(a.get("required", ())) & set(b.get("required", ()))
        inner = [one.get("properties", {}) for one in (a, b)]
        if depth > 1:
            return False
        return any(
            name in inner[0] and name in inner[1] and self._apart(inner[0][name], inner[1][name], depth + 1)
            for name in both
        )


def _any(options: Iterable[Schema]) -> Schema:
    """One of several holds."""
    left = [option for option in options if option is not False]
    if True in [option for option in left if isinstance(option, bool)]:
        return True
    return left[0] if len(left) == 1 else {"anyOf": left} if left else False


def _all(parts: Iterable[Schema]) -> Schema:
    """Several hold."""
    left = [part for part in parts if part is not True and part != {}]
    if False in [part for part in left if isinstance(part, bool)]:
        return False
    return left[0] if len(left) == 1 else {"allOf": left} if left else True


def _others(*types: str) -> Schema:
    """Values of other types. Of other numbers than whole ones there is none here."""
    known = {"number" if kind == "integer" else kind for kind in types}
    left = [kind for kind in _TYPES if kind not in known]
    return {"type": left} if left else False


def _values(schema: Schema) -> list[Any] | None:
    """The values of a schema that lists them, each once."""
    if not isinstance(schema, Mapping) or set(schema) - _REMARKS - {"type", "enum", "const"}:
        return None
    if "enum" in schema or "const" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return list({json.dumps(value): value for value in values}.values())
    known: dict[str, list[Any]] = {"boolean": [False, True], "null": [None]}
    return known.get(str(schema.get("type")))


def _other_than(values: list[Any]) -> Schema | None:
    """Other values than these; of lists and objects none at all, if one of these is such a one."""
    kinds = {"boolean" if isinstance(v, bool) else _KINDS.get(type(v), "null"): True for v in values}
    options: list[Schema] = [_others(*kinds)]
    texts = [value for value in values if isinstance(value, str)]
    if sum(map(len, texts)) > _STRING or any(len(text) > 200 for text in texts):
        return None
    if texts:
        options.append({"type": "string", "pattern": f"^{_differs(texts)}$"})
    numbers = sorted({value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)})
    for low, high in itertools.pairwise([None, *numbers, None]) if numbers else ():
        bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        options.append({"type": "number", **{key: bound for key, bound in bounds.items() if bound is not None}})
    truths = {value for value in values if isinstance(value, bool)}
    if truths:
        options += [{"const": value} for value in (False, True) if value not in truths]
    return _any(options)


_KINDS = {str: "string", int: "number", float: "number", list: "array", dict: "object"}


def _differs(texts: Iterable[str]) -> str:
    """A regular expression of all texts but these."""
    rest: dict[str, list[str]] = {}
    ends = False
    for text in texts:
        if text:
            rest.setdefault(text[0], []).append(text[1:])
        else:
            ends = True
    if not rest:
        return "(?s:.)+" if ends else "(?s:.)*"
    options = [] if ends else [""]
    options.append(f"[^{''.join(map(_sign, rest))}](?s:.)*")
    options += [_sign(first) + _differs(after) for first, after in rest.items()]
    return f"(?:{'|'.join(options)})"


def _sign(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


def _pattern_of(names: Mapping[str, Any]) -> str | None:
    """A regular expression of the texts that a schema describes, if that is all it says."""
    rest = set(names) - _REMARKS - {"type"}
    if rest == {"pattern"}:
        return str(names["pattern"])
    if rest and rest <= {"minLength", "maxLength"}:
        return f"^(?s:.){{{int(names.get('minLength', 0))},{int(names['maxLength']) if 'maxLength' in names else ''}}}$"
    return None
