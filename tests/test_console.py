"""What the terminal, or a file in its place, is shown."""

from __future__ import annotations

import pytest

from acdc_cli import console


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0"), (7, "7"), (999, "999"), (4_706_064, "4.71 M"), (3.2e19, "32 E"), (5e22, "5e+04 E")]
)
def test_a_large_number_has_three_digits_and_a_prefix(number: float, shown: str) -> None:
    assert console.with_prefix(number) == shown


def test_a_bar_off_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 29.0, 31.0, 40.0, 62.0, 99.0])
    monkeypatch.setattr("acdc_cli.console.time.monotonic", lambda: next(clock))
    with console.progress("epoch 3", "loss {task.fields[loss]}") as bar:
        task = bar.add_task("epoch 3, step", total=1200, completed=1000, loss="…")
        bar.advance(task)
        bar.update(task, loss="1.250")
        bar.advance(task)
        bar.advance(task)
        bar.update(task, completed=1200)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 3, step 1,001 of 1,200 loss 1.250",
        "epoch 3, step 1,003 of 1,200 loss 1.250",
    ]
