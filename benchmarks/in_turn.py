"""Timing several ways of doing one thing in turn, so that a machine whose speed drifts treats all of them alike."""

import time


def in_turn(ways, rounds, warm_up=0, clock=None):
    """Seconds that each way took, by name, one for each round.

    Args:
        ways: functions without arguments, by name.
        rounds: how often each is called and counted.
        warm_up: rounds before these that are not counted.
        clock: seconds that a call of a function takes; None: by the wall.
    """
    times = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            spent = (clock or wall_seconds)(way)
            if number >= warm_up:
                times[name].append(spent)
    return times


def wall_seconds(function):
    """How long a call takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun
