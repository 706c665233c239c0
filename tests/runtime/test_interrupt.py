"""Ctrl-C as a request to stop."""

import signal
import threading

import pytest

from pyro_bnn.runtime.interrupt import graceful_interrupt


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_control_c_calls_stop_and_the_block_goes_on():
    handler = signal.getsignal(signal.SIGINT)
    calls = []
    with graceful_interrupt(lambda: calls.append("stop")):
        press()
        calls.append("after")
    assert calls == ["stop", "after"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_control_c_ends_the_block_without_an_error():
    calls = []
    with graceful_interrupt(lambda: calls.append("stop")):
        press()
        press()
        calls.append("after")
    assert calls == ["stop", "stop"]


def test_other_errors_are_raised_and_the_handler_restored():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError, match="inside"), graceful_interrupt(lambda: None):
        raise KeyError("inside")
    assert signal.getsignal(signal.SIGINT) is handler


def test_outside_the_main_thread_the_handler_is_not_touched():
    handlers = []

    def work():
        with graceful_interrupt(lambda: None):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
