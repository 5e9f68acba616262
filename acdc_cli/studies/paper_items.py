"""`acdc recipes papers`: tables and figures of both papers, what trains them, what draws them, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from acdc_cli.recipe import shipped
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.syntax import read_file
from acdc_cli.studies.study import load_study


class ItemBlock(Block):
    """A table or a figure."""

    paper: Literal["P1", "P2"]
    item: str
    """`Table 1`, `Figure C.1`."""
    shows: str
    study: str | None = None
    """The shipped study that trains it …"""
    recipe: str | None = None
    """… or the shipped recipe."""
    first: list[str] = []
    """Runs that it starts from: arguments of `acdc train`."""
    draws: list[str] = Field(min_length=1)
    """`report`, analyses that the study names, or analyses of the recipe's run."""

    @model_validator(mode="after")
    def _is_trained_once(self) -> Self:
        if (self.study is None) == (self.recipe is None):
            raise ValueError(f"{self.item}: needs a study or a recipe, not both")
        return self

    @property
    def train(self) -> list[str]:
        """The commands that train it, in turn."""
        first = [f"acdc train {arguments}" for arguments in self.first]
        return [*first, f"acdc train {self.recipe}" if self.study is None else f"acdc sweep {self.study}"]

    @property
    def draw(self) -> list[str]:
        """The commands that draw it."""
        return [self._drawn_by(name) for name in self.draws]

    def _drawn_by(self, name: str) -> str:
        if self.recipe is not None:
            recipe = load(self.recipe)
            return f"acdc analyze {name} runs/{recipe.name}-{recipe.seed}"
        return f"acdc report {self.study}" if name == "report" else f"acdc analyze {name} --study {self.study}"

    def runs(self) -> int:
        return len(self.first) + (1 if self.study is None else len(load_study(self.study).cells()))

    def recipes(self) -> list[Recipe]:
        """The recipe of each run."""
        first = [
            load(name, [each for each in overrides if each != "--set"])
            for name, *overrides in map(str.split, self.first)
        ]
        return [*first, *([load(self.recipe)] if self.recipe else load_study(str(self.study)).recipes().values())]

    def as_dict(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in ("paper", "item", "shows", "train", "draw")}
        return own | {"runs": self.runs()}


class PapersBlock(Block):
    items: list[ItemBlock]


@dataclass(frozen=True)
class Cost:
    """What the runs of an item take together."""

    epochs: int
    train_flops: float
    """As counted by `acdc plan`."""


def paper_items() -> list[ItemBlock]:
    """Every item, in the order of the papers."""
    root, problems = read_file(shipped.PAPERS)
    assert not problems, problems
    return PapersBlock.model_validate(root.plain()).items


def costs(items: list[ItemBlock]) -> list[Cost]:
    """The cost of each item. Plans every different run once, which takes minutes for all items."""
    from acdc_cli import console
    from acdc_cli.studies.study_plan import Costs, own_epochs

    price, totals = Costs(), []
    with console.progress("planning") as bar:
        for item in bar.track(items, description="planning"):
            recipes = item.recipes()
            flops = sum(price(recipe)[0] for recipe in recipes)
            totals.append(Cost(sum(map(own_epochs, recipes)), flops))
    return totals
