"""Ctrl-C ends a fit after a whole step, with a usable result."""

import os
import signal
import threading

import pytest

from tests.training.programs import (
    digest,
    linear_pair,
    press_in_epoch_2,
    quick_fit,
    raise_in_epoch_2,
    toy_data,
)


@pytest.mark.parametrize("callback", [press_in_epoch_2, raise_in_epoch_2])
def test_control_c_returns_the_result_so_far_and_restores_the_handler(callback):
    handler = signal.getsignal(signal.SIGINT)
    result = quick_fit(*linear_pair(), toy_data(), epochs=50, callbacks=[callback])
    assert result.interrupted
    assert len(result.history["loss"]) == 2
    assert signal.getsignal(signal.SIGINT) is handler
    assert result.posterior.predict(toy_data()[0]).mean.isfinite().all()
    assert not quick_fit(*linear_pair(), toy_data()).interrupted
    # the interrupted fit ended after a whole step
    stopped = quick_fit(*linear_pair(), toy_data(), epochs=50, batch_size=30, callbacks=[callback])
    whole = quick_fit(*linear_pair(), toy_data(), epochs=2, batch_size=30)
    assert digest(stopped) == digest(whole)


def test_control_c_in_the_middle_of_training_stops_the_fit():
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))

    def begin(progress):
        if progress.epoch == 1:
            timer.start()

    result = quick_fit(*linear_pair(), toy_data(), epochs=100_000, compile=False, callbacks=[begin])
    timer.join()
    assert result.interrupted
    assert len(result.history["epoch"]) < 50_000


def test_a_second_control_c_inside_a_callback_ends_the_fit_without_an_error():
    def twice(progress):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    assert quick_fit(*linear_pair(), toy_data(), epochs=50, callbacks=[twice]).interrupted


def test_the_error_of_a_callback_is_raised_and_the_handler_restored():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        quick_fit(*linear_pair(), toy_data(), callbacks=[lambda progress: 1 / 0])
    assert signal.getsignal(signal.SIGINT) is handler
