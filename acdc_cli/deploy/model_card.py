"""The README.md of a model: what it is, what it scores, what it cost, and how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import Template

from acdc_cli.data.labels import Labels
from acdc_cli.deploy.contract import ModelDescription
from acdc_cli.recipe.discovery import METHODS
from acdc_cli.recipe.kinds import measures_of, task_class
from acdc_cli.recipe.syntax import dump

_SPARSITIES = {
    "sparsity": "sparsity of the pruned layers",
    "sparsity_all": "sparsity of all conv and linear layers",
}
_CARD = Template(
    """---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, sparsity, pruning]
---
# {{ facts.name }}

A {{ model.name }} of {{ facts.classes | length }} {{ outputs }}, trained by
[acdc](https://pypi.org/project/acdc-cli/) on {{ facts.recipe.data.name }}. Method `{{ method }}`: {{ about }}

| measure | value |
|---|---|
{%- for name, value in rows %}
| {{ name }} | {{ value }} |
{%- endfor %}

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)      # this folder; "hf-hub:USER/NAME" on the Hub
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

Pruned weights are stored as exact zeros.

## Recipe

```yaml
{{ recipe -}}
```

## Citation

- Peste, Iofinova, Vladu, Alistarh: AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks.
  NeurIPS 2021, [arXiv:2106.12379](https://arxiv.org/abs/2106.12379)
- Kuznedelev, Kurtic, Iofinova, Frantar, Peste, Alistarh: Accurate Neural Network Pruning Requires Rethinking Sparse
  Optimization. 2023, [arXiv:2308.02060](https://arxiv.org/abs/2308.02060)
""",
    keep_trailing_newline=True,
)


def model_card(facts: ModelDescription) -> str:
    method = facts.recipe.sparsity.method
    card: str = _CARD.render(
        facts=facts,
        model=facts.recipe.model,
        outputs=Labels(facts.classes, task_class(facts.recipe.task.name).targets).word,
        method=method,
        about=METHODS.described()[method],
        rows=list(_rows(facts)),
        recipe=dump(facts.header["recipe"]),
    )
    return card


def _rows(facts: ModelDescription) -> Iterator[tuple[str, str]]:
    """What is known of the model, measured at the end of its last epoch, and of its run."""
    metrics = facts.header.get("metrics") or {}
    headline = measures_of(facts.recipe.task.name).headline
    if (value := metrics.get(headline.key)) is not None:
        yield headline.name, headline.spelt(value)
    for key, name in _SPARSITIES.items():
        if (value := metrics.get(key)) is not None:
            yield name, f"{value:.2%}"
    counts = {"inference_flops_measured": "inference FLOPs", "train_flops_measured": "FLOPs of the training"}
    for key, name in counts.items():
        if (value := facts.outcome.get(key)) is not None:
            yield name, f"{value:.3g}"
    if (seconds := facts.outcome.get("seconds")) is not None:
        yield "hours of training", f"{seconds / 3600:.2f}"
