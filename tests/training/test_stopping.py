from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from acdc_cli.training.stopping import StopSignals


def test_the_first_signal_asks_and_only_a_second_ctrl_c_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert not stop
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(each)
            assert stop.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_the_signals_stay_the_programs() -> None:
    def handler() -> object:
        with StopSignals():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(handler).result() is signal.getsignal(signal.SIGTERM)
