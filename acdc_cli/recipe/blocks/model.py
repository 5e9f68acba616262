"""The block `model` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from acdc_cli.recipe.blocks.base import Bears, Block


class ModelBlock(Block):
    name: str
    """A model of `acdc_cli/models`, else of torchvision, else of timm; `torchvision:NAME`, `timm:NAME` pick one.
    `hf:bert`, or a folder or OWNER/NAME of the Hugging Face Hub after `hf:`: an encoder of sentences by transformers.
    `FILE.py:FUNCTION` calls a function of yours; the file is looked for beside the recipe, then in the working
    directory, and copied into the run."""
    code: str | None = None
    """Digest of the file in `name` and of the modules beside it that it imports. acdc fills it in, and refuses another
    content where it is given."""
    blurpool: bool = False
    """Blur before every strided convolution with at least 16 input channels (P2 A); parameter names stay the same."""
    blur: Annotated[Literal["convolution", "shifts"], Bears.EXECUTION] = "convolution"
    """How `blurpool` is computed; the results are equal up to rounding. `convolution`: as a depthwise convolution.
    `shifts`: as a sum of shifted copies, which torch.compile fuses with other operations; slower without it."""
    weights: str | None = None
    """Start from the weights in this file (.safetensors, packed or a torch file), in this folder as the Hugging Face
    Hub has it, or from `hf-hub:OWNER/NAME` or timm's pretrained `timm:TAG`, such as `timm:resnet50.a1_in1k`."""
    rename: list[Annotated[str, Field(pattern=r"^[^=]+=[^=]*$", json_schema_extra={"expected": "OLD=NEW"})]] = []
    """Replace text in the tensor names of the file that the run starts from, in this order: `[linear.=fc.]`."""
    new_head: bool = False
    """Start from the weights of all layers but the classifier, which is initialised at random for the classes of the
    data; it is dense, and pruned as any layer unless `sparsity.keep_dense` has `last`."""
    options: dict[str, bool | int | float | str] = {}
    """Further keyword arguments of the model's constructor, for example `drop_path_rate: 0.1`; with `hf:`, keys of its
    config.json, such as `num_hidden_layers: 6`."""

    @model_validator(mode="after")
    def _has_code(self) -> Self:
        if self.code is not None and ".py:" not in self.name:
            raise ValueError(f"code: {self.name} is no file; leave it out, or set name: FILE.py:FUNCTION")
        return self

    def starting_from(self, weights: str | None) -> Self:
        """The same architecture with all weights of another file, whose names are the model's."""
        return self.model_copy(update={"weights": weights, "rename": [], "new_head": False})
