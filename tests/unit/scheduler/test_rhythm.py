"""A revision that comes at regular times is there before it is asked for."""

from openmint_scheduler.limits import Limits
from openmint_scheduler.messages import LoadKey
from openmint_scheduler.rhythm import RhythmBook

KEY = LoadKey("serve", "sha256:a")


def told(times_s):
    book = RhythmBook()
    return [book.heard(KEY, at_s) for at_s in times_s][-1]


def test_four_regular_requests_make_a_rhythm():
    assert told([0, 300, 602, 899]) == 899 + 899 / 3
    assert told([0, 300, 600]) is None


def test_bunches_and_wandering_demand_make_none():
    assert told([0, 300, 350, 900]) is None
    assert told([0, 1, 2, 3, 4, 5]) is None


def test_retries_within_a_beat_do_not_count():
    assert told([0, 1, 300, 301, 600, 601, 900, 901]) == 1200


def regular_nights(make_bench, predicts):
    bench = make_bench(Limits(settle_s=0.0, predicts=predicts))
    bench.engine("e1", capacity=1)
    for beat in range(5):
        was_there = bench.is_resident(1)
        bench.ask(1, deadline_s=5.0)
        bench.settle()
        for _ in range(14):
            bench.wait(1.0)
        bench.ask(100 + beat, deadline_s=5.0)
        bench.settle()
        for _ in range(46):
            bench.wait(1.0)
            bench.settle()
    return was_there


def test_it_is_loaded_before_the_next_beat_when_that_is_wanted(make_bench):
    assert regular_nights(make_bench, predicts=True)
    assert not regular_nights(make_bench, predicts=False)
