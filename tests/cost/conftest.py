from __future__ import annotations

import pytest
from nets import on_meta

from acdc_cli.cost.count import Operation, operations


@pytest.fixture(scope="session")
def resnet50() -> list[Operation]:
    return operations(on_meta("resnet50"), 224)
