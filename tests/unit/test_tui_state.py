"""The live view's model: events in, figures out."""

import math

from hypothesis import given
from hypothesis import strategies as st

from controller.events import DeviceChanged, Event, Message, Progress, Reading, SampleBatch
from controller.tui.state import LOG_LINES, MAX_SAMPLES, TREND_POINTS, Latencies, ViewState

BUNDLE = "ab" * 32


def fed(*events: Event) -> ViewState:
    state = ViewState("test")
    for at, event in enumerate(events):
        state.apply(event, float(at))
    return state


def test_percentiles_of_few_samples_are_exact() -> None:
    latencies = Latencies()
    latencies.add(float(value) for value in range(1, 101))
    assert latencies.percentile(0.5) == 50
    assert latencies.percentile(0.99) == 99
    assert latencies.rate is not None
    assert math.isclose(latencies.rate, 1e3 * 100 / 5050)


def test_percentiles_of_many_samples_take_bounded_memory() -> None:
    latencies = Latencies()
    for start in range(0, 200_000, 1000):
        latencies.add(1.0 + (index * 7919 % 1000) / 1000 for index in range(start, start + 1000))
    assert latencies.count == 200_000
    assert len(latencies._kept) <= MAX_SAMPLES
    for share in (0.5, 0.99):
        value = latencies.percentile(share)
        assert value is not None
        assert abs(value - (1 + share)) < 0.02


def test_no_samples_no_figures() -> None:
    assert Latencies().percentile(0.5) is None
    assert Latencies().rate is None


def test_samples_of_another_bundle_start_anew() -> None:
    state = fed(SampleBatch("a", "net", BUNDLE, [5.0, 7.0], 0.5), SampleBatch("a", "net", "cd" * 32, [1.0], 0.1))
    row = state.rows["a"]
    assert row.latencies.count == 1
    assert list(row.trend) == [1.0]
    assert row.task is not None
    assert row.task.share == 0.1


def test_only_changes_are_worth_a_line() -> None:
    state = ViewState("test")
    assert state.apply(DeviceChanged("a", "idle", BUNDLE, "net"), 0.0) is not None
    assert state.apply(DeviceChanged("a", "idle", BUNDLE, "net"), 1.0) is None
    assert state.apply(Reading("a", {"cpu_percent": 3.0}), 1.0) is None
    assert state.apply(Progress("a", "push", 0.1), 2.0) is not None
    assert state.apply(Progress("a", "push", 0.2), 2.1) is None
    assert state.apply(Progress("a", "push", 1.0), 2.2) is not None
    assert state.apply(Progress("a", "push", 1.0), 2.3) is None
    assert state.apply(Message("a", "hello", "warning"), 3.0) is not None
    assert [entry.text for entry in state.log] == ["idle, runs net abababababab", "push", "push done", "hello"]


def test_a_build_is_news_when_it_begins_and_ends() -> None:
    state = fed(
        Progress("", "build", 0.0, "net for x86: import"),
        Progress("", "build", 0.5, "net for x86: compile"),
        Progress("", "build", 1.0, "net for x86: store"),
        Progress("", "build", 1.0, "net for x86: done"),
        Progress("", "build", 1.0, "net for arm64: cached"),
        Progress("", "build", 0.1, "net for armv7: import"),
        Progress("", "build", 1.0, "net for armv7: failed"),
    )
    assert [(entry.text, entry.level) for entry in state.log] == [
        ("build net for x86", "info"),
        ("build net for x86 done", "info"),
        ("build net for arm64 cached", "info"),
        ("build net for armv7", "info"),
        ("build net for armv7 failed", "error"),
    ]


def test_a_device_that_is_gone_has_no_readings_and_no_task() -> None:
    state = fed(Reading("a", {"cpu_percent": 3.0}), Progress("a", "push", 0.4), DeviceChanged("a", "offline"))
    row = state.rows["a"]
    assert row.readings == {}
    assert not row.busy
    assert state.log[-1].level == "warning"


EVENTS = st.one_of(
    st.builds(
        DeviceChanged,
        st.sampled_from("abc"),
        st.sampled_from(["idle", "benching", "offline", "odd state"]),
        st.sampled_from(["", BUNDLE]),
        st.text(max_size=8),
    ),
    st.builds(
        Progress,
        st.sampled_from(["", "a", "b"]),
        st.sampled_from(["push", "golden"]),
        st.floats(allow_nan=False, min_value=-1, max_value=2),
        st.text(max_size=20),
    ),
    st.builds(
        SampleBatch,
        st.sampled_from("abc"),
        st.just("net"),
        st.sampled_from([BUNDLE, "cd" * 32]),
        st.lists(st.floats(min_value=0, max_value=1e6), max_size=50),
        st.floats(min_value=0, max_value=1),
    ),
    st.builds(Reading, st.sampled_from("abc"), st.dictionaries(st.text(max_size=5), st.floats())),
    st.builds(Message, st.sampled_from(["", "a"]), st.text(max_size=200)),
)


@given(st.lists(EVENTS, max_size=60))
def test_any_events_leave_bounded_and_ordered_figures(events: list[Event]) -> None:
    state = fed(*events)
    assert len(state.log) <= LOG_LINES
    assert set(state.rows) <= set("abc")
    for row in state.rows.values():
        assert len(row.trend) <= TREND_POINTS
        p50, p99 = row.latencies.percentile(0.5), row.latencies.percentile(0.99)
        assert (p50 is None) == (p99 is None) == (row.latencies.count == 0)
        assert p50 is None or p99 is None or p50 <= p99
