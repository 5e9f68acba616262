"""The blocks of a study file. A field's docstring documents the key for the person who fills in the YAML."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from acdc_cli.recipe.blocks.base import Block
from acdc_cli.studies.grid import Cell, Name

Scalar = bool | int | float | str | None


class LabelledBlock(Block):
    label: str | int | float
    """Name of the value in tables and directories."""
    set: dict[str, Any]
    """Recipe keys, as for `--set`, and their values."""


AxisValue = Annotated[
    Scalar | LabelledBlock,
    Field(json_schema_extra={"expected": "a number, text, true, false, null or {label: NAME, set: {KEY: VALUE, …}}"}),
]
Values = list[AxisValue]


class LengthsBlock(Block):
    values: Values
    until_converged: bool = False
    """For the axis `epochs`: double the longest length, series by series, as long as the validation accuracy still
    rises by more than one standard deviation over the seeds and the budget allows it."""


Axis = Annotated[
    Values | LengthsBlock,
    Field(json_schema_extra={"expected": "a list of values, or a block with the keys values, until_converged"}),
]


class BudgetBlock(Block):
    """Limits on all runs of the study together, including those added by `until_converged`."""

    runs: PositiveInt | None = None
    epochs: PositiveInt | None = None
    train_flops: PositiveFloat | None = None
    """Training FLOPs as counted by `acdc plan`."""

    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        return {key: limit for key, limit in self.model_dump().items() if limit is not None}


class AdjustmentBlock(Block):
    where: dict[str, Scalar] = Field(
        min_length=1, json_schema_extra={"expected": "at least one axis and a value of it, such as `sparsity: 0.98`"}
    )
    """Values of axes; a run with all of them is adjusted."""
    set: dict[str, Any]
    """Recipe keys, as for `--set`; they override those of the axes."""


class ForkBlock(Block):
    where: dict[str, Scalar] = Field(
        min_length=1, json_schema_extra={"expected": "at least one axis and a value of it, such as `model: finetuned`"}
    )
    """Values of axes; a run with all of them is a fork."""
    run: dict[str, Scalar] = Field(
        min_length=1, json_schema_extra={"expected": "at least one axis and a value of it, such as `model: sparse`"}
    )
    """The forked run has these values instead, and otherwise the same."""
    after: PositiveInt
    """Epochs after which it is forked; `checkpoint.keep_states` keeps its state there."""


class SelectionBlock(Block):
    where: dict[
        str,
        Annotated[
            Scalar | list[Scalar], Field(json_schema_extra={"expected": "a value of the axis, or a list of values"})
        ],
    ] = {}
    """Axes and their values; runs with one of the values on each axis are taken. Default: all runs."""
    file: str | None = None
    """Files of these runs instead of the runs: `dense.safetensors`, or several with `*` and `?`, such as
    `checkpoints/epoch-0?99-*.safetensors`."""

    def takes(self, cell: Cell) -> bool:
        return all(cell.axes[axis] in names for axis, names in self.names().items())

    def names(self) -> dict[str, list[Name]]:
        """The values of each axis as tables have them."""
        lists = {axis: given if isinstance(given, list) else [given] for axis, given in self.where.items()}
        return {axis: [name_of(value) for value in values] for axis, values in lists.items()}


class AnalysisBlock(Block):
    """An analysis of the study's runs; `acdc sweep` refuses a study whose runs would not save what it reads."""

    analysis: str | None = None
    """Its name in `acdc analyze`. Default: the key of this block."""
    runs: list[SelectionBlock] = Field(
        [SelectionBlock()], min_length=1, json_schema_extra={"expected": "a list of blocks with the keys where, file"}
    )
    """Runs and files, in the order in which the analysis takes them."""
    set: dict[str, Any] = {}
    """Options of the analysis, as for `acdc analyze --set`."""


class StudyBlock(Block):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        json_schema_extra={
            "expected": "a name of at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        },
    )
    """Name of the study directory: studies/<name>."""
    base: str
    """A recipe: a path relative to this file, or the name of one that ships with acdc."""
    set: dict[str, Any] = {}
    """Recipe keys, as for `--set`, for all runs."""
    axes: dict[str, Axis] = Field(
        min_length=1, json_schema_extra={"expected": "at least one axis such as `seed: [0, 1, 2]`"}
    )
    """An axis is any key accepted by `--set`; or `sparsity`, whose values are `dense` or a fraction; or any other name,
    whose values each have a `label` and a `set`. There is a run for every combination."""
    zip: list[list[str]] = []
    """Axes that advance together: the first value of one goes with the first of the other."""
    exclude: list[dict[str, Scalar]] = []
    """Combinations to leave out."""
    adjust: list[AdjustmentBlock] = []
    """Keys needed only by some combinations, for example a method's own key at one sparsity."""
    fork: list[ForkBlock] = []
    """Runs that start from a kept state of others, which are trained first."""
    budget: BudgetBlock = BudgetBlock()
    analyses: dict[str, AnalysisBlock] = {}
    """Analyses that draw the study's figures: `acdc analyze NAME --study STUDY` runs them."""


def name_of(value: Scalar) -> Name:
    """The value as written in the file."""
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else value
