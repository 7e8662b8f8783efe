"""How the service's time becomes the time of the data."""

from hypothesis import given
from hypothesis import strategies as st

from recsys.events.data_clock import DAY_S, LIVE_WITHIN_DAYS, DataClock

MOMENTS = st.integers(0, 3_000_000_000)


@given(recorded=MOMENTS, gap_days=st.integers(0, 20_000), moments=st.lists(MOMENTS, min_size=2))
def test_no_order_is_reversed_and_live_moments_come_back_as_they_were(recorded, gap_days, moments):
    first_live = recorded + gap_days * DAY_S
    clock = DataClock.following(recorded, first_live)
    in_order = [clock.to_data(moment) for moment in sorted(moments)]
    assert in_order == sorted(in_order)
    for moment in moments:
        if moment < clock.recorded_end or moment >= clock.live_start:
            assert clock.to_live(clock.to_data(moment)) == moment


@given(recorded=MOMENTS, gap_days=st.integers(LIVE_WITHIN_DAYS + 2, 20_000))
def test_the_first_live_day_follows_the_last_recorded_one_at_the_same_time_of_day(recorded, gap_days):
    first_live = recorded + gap_days * DAY_S
    clock = DataClock.following(recorded, first_live)
    assert clock.to_data(first_live) == recorded + DAY_S
    assert clock.to_data(first_live + 5 * DAY_S) == recorded + 6 * DAY_S


def test_a_data_set_that_ended_lately_or_has_no_end_is_live():
    assert DataClock.following(1_000 * DAY_S, (1_000 + LIVE_WITHIN_DAYS) * DAY_S).shift_s == 0
    assert DataClock.following(None, 1e9).to_data(123) == 123
