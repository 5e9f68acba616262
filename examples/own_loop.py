"""AC/DC in a training loop of your own: a small convolutional network learns synthetic images at 90 % sparsity.

Run it with `python examples/own_loop.py`; it takes a few seconds on a CPU and needs no data.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from acdc_cli import api

torch.manual_seed(0)
images = torch.randn(512, 3, 8, 8)
labels = images.mean(dim=(2, 3)).argmax(dim=1)  # the brightest channel
batches = list(zip(images.split(64), labels.split(64), strict=True))
model = nn.Sequential(
    nn.Conv2d(3, 16, 3),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 3),
)

optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
recipe = api.load_recipe("demo", ["sparsity.target=0.9"])  # its sparsity block, epochs and seed apply
sparse = api.SparseTraining(model, optimizer, recipe, steps_per_epoch=len(batches))
for epoch in sparse.epochs():
    for inputs, targets in batches:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        sparse.step()  # in place of optimizer.step()

    accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
    print(f"epoch {epoch:2}: accuracy {accuracy:.2%}, sparsity {sparse.sparsity():.2%}")
