"""Ctrl-C: the first one asks, the second one stops, and afterwards it is as before."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest

from veneer.training.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_says_so_at_once(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    with Interrupt() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(number)
        assert interrupt.asked
        assert capfd.readouterr().err == "\nstopping after this step; once more to stop at once\n"
        assert {one: signal.getsignal(one) for one in before} == before
    assert {one: signal.getsignal(one) for one in before} == before


def test_the_second_one_stops_at_once() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interrupt.asked


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with contextlib.suppress(ValueError), Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_signals_are_left_alone() -> None:
    """Where Python lets nobody set a handler, training still runs."""
    seen: list[bool] = []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append(interrupt.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
