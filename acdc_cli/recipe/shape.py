"""What each place in a recipe accepts, read from the JSON schema of its blocks and put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Shape:
    """One place in a recipe: a block, a list or a value, with what it accepts."""

    schema: Mapping[str, Any]
    definitions: Mapping[str, Any]

    @classmethod
    def of(cls, block: type[BaseModel]) -> Shape:
        schema = block.model_json_schema()
        return cls(schema, schema.get("$defs", {}))

    def _shape(self, schema: Mapping[str, Any]) -> Shape:
        while "$ref" in schema:
            schema = self.definitions[schema["$ref"].removeprefix("#/$defs/")]
        return Shape(schema, self.definitions)

    @property
    def chooser(self) -> str | None:
        """The key that picks one of several kinds of this block, such as `name` of `optim`."""
        return self.schema["discriminator"]["propertyName"] if "discriminator" in self.schema else None

    @property
    def kinds(self) -> dict[str, Shape]:
        """The blocks that the chooser picks from."""
        mapping = self.schema["discriminator"]["mapping"] if self.chooser else {}
        return {kind: self._shape({"$ref": reference}) for kind, reference in mapping.items()}

    @property
    def keys(self) -> list[str]:
        """The keys of a block."""
        return list(self.schema.get("properties", {}))

    @property
    def options(self) -> list[Shape]:
        """The alternatives that this place accepts, without `null`; itself if there is only one."""
        members = [self._shape(member) for member in self.schema.get("anyOf", [])]
        return [member for member in members if member.schema.get("type") != "null"] or [self]

    @property
    def choices(self) -> list[str]:
        """The words that this place accepts."""
        words: list[str] = []
        for option in self.options:
            words += option.schema.get("enum", [])
            words += [option.schema["const"]] if "const" in option.schema else []
        return words

    def child(self, key: str | int) -> Shape | None:
        """The shape at a key of a block or at a position of a list; None if there is none."""
        if isinstance(key, str):
            inner = self.schema.get("properties", {}).get(key) or self.schema.get("additionalProperties")
        else:
            places = self.schema.get("prefixItems", [])
            inner = places[key] if key < len(places) else self.schema.get("items")
        return self._shape(inner) if inner else None

    def takes(self, kind: str) -> bool:
        """Whether this place accepts values of a JSON type (`boolean`, `array`, …)."""
        return any(option.schema.get("type") == kind for option in self.options)

    def in_words(self) -> str:
        """`a whole number above 0`, `auto, bf16, fp16 or fp32`, …"""
        if "expected" in self.schema:
            return str(self.schema["expected"])
        words = list(self.choices)
        for option in self.options:
            if not option.choices:
                words += ["true", "false"] if option.schema.get("type") == "boolean" else [option._one_in_words()]
        if any(member.get("type") == "null" for member in self.schema.get("anyOf", [])):
            words.append("null")
        return either(words)

    def _one_in_words(self) -> str:
        schema = self.schema
        if "expected" in schema:
            return str(schema["expected"])
        if self.chooser:
            return f"a block whose {self.chooser} is {either(list(self.kinds))}"
        if "properties" in schema:
            required = schema.get("required", [])
            return f"a block with {'at least ' if required else 'the keys '}{', '.join(required or self.keys)}"
        kind = schema.get("type")
        if kind == "array":
            return self._list_in_words()
        names = {"integer": "a whole number", "number": "a number", "string": "text", "object": "a block of keys"}
        return names.get(str(kind), "a value") + _range_in_words(schema)

    def _list_in_words(self) -> str:
        places = self.schema.get("prefixItems", [])
        item = self._shape(places[0] if places else self.schema.get("items", {}))
        return f"a list{f' of {len(places)}' if places else ''}, each {item.in_words()}"


def either(words: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _range_in_words(schema: Mapping[str, Any]) -> str:
    low = f"of at least {schema['minimum']:g}" if "minimum" in schema else ""
    low = f"above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else low
    high = f"of at most {schema['maximum']:g}" if "maximum" in schema else ""
    high = f"below {schema['exclusiveMaximum']:g}" if "exclusiveMaximum" in schema else high
    if low.startswith("of") and high.startswith("of"):
        return f" from {schema['minimum']:g} to {schema['maximum']:g}"
    return "".join(f" {bounds}" for bounds in [" and ".join(filter(None, (low, high)))] if bounds)
