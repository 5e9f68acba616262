"""A recipe: its blocks and the keys of the run. Docstrings document keys for the person who fills in the YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.base import THREADS, Bears, Block, EpochCount
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.blocks.optim import Optim
from acdc_cli.recipe.blocks.run import CheckpointBlock, DistributedBlock, EMABlock, TrackBlock
from acdc_cli.recipe.blocks.sparsity import SparsityBlock
from acdc_cli.recipe.blocks.task import TaskBlock


class Recipe(Block):
    name: Annotated[str, Bears.REPETITION] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        json_schema_extra={
            "expected": "a name of at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        },
    )
    """Names the run directory: runs/<name>-<seed>."""
    epochs: EpochCount
    """Passes over the training set."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Bears.REPETITION] = 0
    """Seed of initial weights, order of images and augmentation."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Bears.EXECUTION] = "auto"
    """`auto`: CUDA if there is a GPU, else the CPU."""
    threads: Annotated[Annotated[PositiveInt, THREADS] | None, Bears.EXECUTION] = None
    """CPU threads of one operation. Default: one per core. A small model on a busy machine is faster with fewer;
    runs are identical to the bit only with the same number."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """`auto`: bf16 on CUDA, fp32 on the CPU. fp16 scales the loss. fp32 is IEEE float32 everywhere. tf32 lets CUDA
    round the factors of convolutions and matrix products to 10 bits, which is several times faster. Operations that
    bf16 and fp16 leave in float32 use IEEE float32."""
    compile: Annotated[Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] | bool, Bears.EXECUTION] = (
        "auto"
    )
    """The mode of torch.compile. `auto`: default on CUDA, off on the CPU. reduce-overhead replays CUDA graphs, which
    helps small models and batches and takes more memory. max-autotune does so, too, after minutes of trying
    out kernels. Older recipes have true for default and false for off."""
    channels_last: Annotated[bool, Bears.EXECUTION] = True
    """Memory layout of images and weights; faster on GPUs and most CPUs."""
    deterministic: Annotated[bool, Bears.EXECUTION] = False
    """Runs identical to the bit on the same GPU: cuDNN and torch use deterministic algorithms only, cuDNN does not
    choose by timing. It is slower, and an operation without such an algorithm stops the run with an error that names
    it. Runs on the CPU are always identical."""
    eval_every: Annotated[PositiveInt, Bears.EXECUTION] = 1
    """Epochs between two validations. An epoch that ends a phase, ends the run or keeps its model is always validated;
    the records of other epochs have null validation metrics. `last_phase: dense_best` chooses among validated epochs.
    """
    fork: Annotated[str | None, Bears.REPETITION] = Field(
        default=None, pattern=r"^.+@[1-9]\d*$", json_schema_extra={"expected": "RUN@EPOCHS such as resnet50_95-0@85"}
    )
    """Start from the state that another run kept after EPOCHS epochs (`checkpoint.keep_states`): RUN@EPOCHS, where RUN
    is the run's directory, absolute or relative to the folder that holds this run. `acdc train --fork` sets it."""
    sync_bn: bool = False
    """Compute batch-norm statistics over the batch of all GPUs together, for parts of a few images. It costs time at
    every layer; on one GPU it makes no difference."""
    model: ModelBlock
    data: SerializeAsAny[DataBlock]
    task: TaskBlock = TaskBlock()
    optim: Optim
    sparsity: SerializeAsAny[SparsityBlock]
    ema: EMABlock | None = None
    """Exponential moving average of the weights, with the model's masks. It is validated after each epoch (`ema_top1`)
    and saved as sparse-ema.safetensors and dense-ema.safetensors. Default: none."""
    track: Annotated[TrackBlock, Bears.NOTHING] = TrackBlock()
    checkpoint: Annotated[CheckpointBlock, Bears.NOTHING] = CheckpointBlock()
    distributed: Annotated[DistributedBlock, Bears.NOTHING] = DistributedBlock()

    @property
    def images(self) -> ImagesBlock:
        """The block `data` of a recipe on images. Raises RecipeError for other inputs."""
        return self.require_images("this")

    def require_images(self, what: str) -> ImagesBlock:
        """The same.  what: works on images only, for the error."""
        if not isinstance(self.data, ImagesBlock):
            raise RecipeError(
                f"{what} works on images only, and {self.name} is a recipe on {self.data.inputs} (task.name: "
                f"{self.task.name})"
            )
        return self.data

    @property
    def forked_after(self) -> int:
        """Epochs that the source of a fork had trained; 0: the run starts from the beginning."""
        return int(self.fork.rpartition("@")[2]) if self.fork else 0

    def as_dict(self) -> dict[str, Any]:
        """Every key with its value, defaults included: what resolved.yaml holds."""
        return self.model_dump(mode="json")
