"""The life cycle of the Generate stream: whatever clients do, in whatever order, each generation ends once, is billed
once, and leaves nothing behind."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import grpc
import hypothesis
from google.protobuf import duration_pb2
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fakes import KEY, AllowsAll, FakeLoader, image_chat
from fuzz import house
from fuzz.background import background
from fuzz.calls import running_server
from fuzz.house import BAD, BAD_CODES, CANCELLED, FULL, GONE, GOOD, LATE, MAX_CONCURRENT, OK, PICTURES, TAKEN, WRONG
from fuzz.streams import Generation, Stream
from fuzz.target import ALL_PHASES, Batch, Note, Target, profile
from spyglass.v1 import inference_pb2 as pb
from spyglass_common.limits import MAX_IMAGE_CHUNK_BYTES
from spyglass_server.engine.worker.budget import Limits

_STEPS = 25
_MAX_STREAMS = 3
_MAX_PENDING = 6
_MAX_IMAGE_BYTES = 2000
_LOADER = FakeLoader(
    num_pages=24, max_tiles=8, step_s=0.0005, limits=Limits(max_batch=4, max_step_tokens=32), grammars=AllowsAll()
)
_WHICH = st.integers(0, 5)


class LifeCycle(RuleBasedStateMachine):
    """Clients of one server."""

    server: ClassVar[house.House]
    note: ClassVar[Note]

    def __init__(self) -> None:
        super().__init__()
        self._name = f"example-{next(self.server.names)}"
        self._numbers = itertools.count()
        self._all: list[Stream] = []
        self._keys: dict[str, tuple[str, set[grpc.StatusCode]]] = {}
        """What was asked first with each idempotency key, and how that may end."""
        self._has_killed = False
        self._killed: int | None = None
        """The engine process that was killed."""

    # --- what clients do ---

    @initialize(key=st.integers(0, 1), name=st.sampled_from(sorted(GOOD)), pictures=st.integers(0, 2))
    def begin(self, key: int, name: str, pictures: int) -> None:
        self.open(key)
        if pictures:
            self.announce(0, pictures)
        else:
            self.start(0, name, 1)

    @precondition(lambda self: len(self._all) < _MAX_STREAMS)
    @rule(key=st.integers(0, 1))
    def open(self, key: int) -> None:
        self._all.append(Stream(self.server.channel, self.server.keys[key]))

    @rule(which=_WHICH, name=st.sampled_from(sorted(GOOD)), gap=st.integers(1, 3))
    def start(self, which: int, name: str, gap: int) -> None:
        self._start(self._stream(which), GOOD[name], name, {OK}, gap)

    @rule(which=_WHICH, name=st.sampled_from(sorted(BAD)))
    def start_wrongly(self, which: int, name: str) -> None:
        self._start(self._stream(which), BAD[name], "", {BAD_CODES.get(name, WRONG)})

    @rule(which=_WHICH, pictures=st.integers(1, 2))
    def announce(self, which: int, pictures: int) -> None:
        name = f"announced {pictures}"
        self._start(self._stream(which), image_chat("look", [None] * pictures, **house.options(8)), name, {OK})

    @rule(which=_WHICH, name=st.sampled_from(["short", "long"]), key=st.sampled_from("ab"))
    def start_with_key(self, which: int, name: str, key: str) -> None:
        start = pb.Start()
        start.CopyFrom(GOOD[name])
        start.idempotency_key = f"{self._name}-{key}"
        first, ends = self._keys.setdefault(f"{self._stream(which).key} {start.idempotency_key}", (name, set()))
        # The first may have failed: then this is another first.
        if first != name:
            ends.add(TAKEN)
        self._start(self._stream(which), start, name, {OK}, all_may_end=ends)

    @rule(which=_WHICH, milliseconds=st.sampled_from([1, 10, 60]))
    def start_in_a_hurry(self, which: int, milliseconds: int) -> None:
        start = pb.Start(timeout=duration_pb2.Duration(nanos=milliseconds * 1_000_000))
        start.MergeFrom(GOOD["long"])
        self._start(self._stream(which), start, "long", {OK, LATE})

    @rule(which=_WHICH)
    def send_images(self, which: int) -> None:
        generation = self._generation(which)
        stream = generation.stream
        if not generation.num_announced or not stream.is_open or stream.is_faulty:
            return
        stream.resume()
        stream.wait(generation, "accepted")
        for number in range(generation.num_announced):
            half = len(PICTURES[number]) // 2
            self._send_chunk(generation, number, PICTURES[number][:half], last=False)
            self._send_chunk(generation, number, PICTURES[number][half:], last=True)
        generation.num_announced = 0

    @rule(
        which=_WHICH,
        index=st.integers(0, 3),
        size=st.sampled_from([0, 1, _MAX_IMAGE_BYTES + 1, MAX_IMAGE_CHUNK_BYTES + 1]),
        last=st.booleans(),
    )
    def send_wrong_chunk(self, which: int, index: int, size: int, last: bool) -> None:
        """A piece of a picture that is too large, or none, or of no picture, or that comes too soon or too late."""
        generation = self._generation(which)
        generation.all_may_end |= {WRONG}  # others with its key get its events
        self._send_chunk(generation, index, b"x" * size, last=last)

    @rule(which=_WHICH)
    def cancel(self, which: int) -> None:
        generation = self._generation(which)
        if generation.stream.is_open:
            generation.may_end |= {CANCELLED}
            generation.stream.send(generation.id, cancel=pb.Cancel())

    @rule(which=_WHICH)
    def address_nobody(self, which: int) -> None:
        stream = self._stream(which)
        if stream.is_open:
            stream.send(stream.last_id + 100, cancel=pb.Cancel())
            stream.send(stream.last_id + 100, image_chunk=pb.ImageChunk(data=b"x"))

    @rule(which=_WHICH)
    def half_close(self, which: int) -> None:
        stream = self._stream(which)
        if not any(one.num_announced for one in stream.generations.values()):  # they would be waited for
            stream.half_close()

    @precondition(lambda self: len(self._all) > 1)
    @rule(which=_WHICH)
    def drop(self, which: int) -> None:
        self._stream(which).drop()

    @rule(which=_WHICH)
    def pause(self, which: int) -> None:
        self._stream(which).pause()

    @rule(which=_WHICH)
    def resume(self, which: int) -> None:
        self._stream(which).resume()

    @rule(
        which=_WHICH, fault=st.sampled_from(["same id", "smaller id", "no kind", "no message"]), sure=st.integers(0, 3)
    )
    def break_the_rules(self, which: int, fault: str, sure: int) -> None:
        stream = self._stream(which)
        if sure or not stream.is_open or stream.last_id < 0:
            return
        match fault:
            case "same id":
                stream.send(stream.last_id, start=GOOD["short"])
            case "smaller id" if stream.last_id > 0:
                stream.send(stream.last_id - 1, start=GOOD["short"])
            case "no message":
                stream.send_bytes(b"\xff\xff\xff")
            case _:
                stream.send(stream.last_id + 1)
        stream.is_faulty = True
        for generation in stream.generations.values():
            generation.may_end |= {CANCELLED}

    @rule(which=_WHICH, kind=st.sampled_from(["accepted", "started", "delta", "finished"]))
    def wait(self, which: int, kind: str) -> None:
        generation = self._generation(which)
        stream = generation.stream
        if not stream.is_faulty and not stream.is_dropped and (kind == "accepted" or not generation.num_announced):
            stream.resume()
            stream.wait(generation, kind)

    @precondition(lambda self: not self._has_killed)
    @rule(sure=st.integers(0, 15))
    def kill_engine(self, sure: int) -> None:
        if sure:
            return
        self._has_killed = True
        for generation in self._everything():
            generation.may_end |= {GONE}
        self._killed = self.server.server.server.engine.pid
        if self._killed is not None:
            self.server.server.kill_engine()

    # --- what must be true ---

    def teardown(self) -> None:
        try:
            for stream in self._all:
                self._end(stream)
            if self._killed is not None:
                self.server.wait_for_another_engine(self._killed)
            self.server.check_nothing_is_left()
            self._check_answers()
            self._check_records()
        finally:
            for stream in self._all:
                stream.drop()
                stream.resume()
        codes = {"cut" if one.code is None else one.code.name for one in self._everything()}
        type(self).note(", ".join(sorted(codes)))

    def _end(self, stream: Stream) -> None:
        """Ends a stream as a client does that wants all answers, but for those that wait for its pictures."""
        if stream.is_open:
            for generation in stream.generations.values():
                if generation.num_announced:
                    generation.may_end |= {CANCELLED}
                    stream.send(generation.id, cancel=pb.Cancel())
        code = stream.join()
        if stream.is_dropped:
            return
        assert code is (WRONG if stream.is_faulty else OK), code
        for generation in stream.generations.values():
            assert stream.is_faulty or generation.finished is not None, "there is no Finished"

    def _check_answers(self) -> None:
        """The same request has the same answer, or as much of it as there was time for."""
        for generation in self._everything():
            for index, text in generation.text.items():
                place = generation.stream.key, generation.answer, index  # an image is another for each tenant
                known = self.server.answers.get(place)
                if generation.code is OK:
                    assert known in (None, text), f"{generation.answer} was answered otherwise"
                    self.server.answers[place] = text
                elif known is not None:
                    assert known.startswith(text)

    def _check_records(self) -> None:
        records = self.server.records()
        by_key: dict[str, list[Generation]] = {}
        for generation in self._everything():
            if generation.idempotency_key:
                by_key.setdefault(f"{generation.stream.key} {generation.idempotency_key}", []).append(generation)
            else:
                _check_record(generation, [generation], records)
        for generations in by_key.values():
            for generation in generations:
                _check_record(generation, generations, records)

    # --- helpers ---

    def _stream(self, which: int) -> Stream:
        """One of the streams, as often one as another, the latest for 0."""
        return self._all[-1 - which % len(self._all)]

    def _generation(self, which: int) -> Generation:
        everything = self._everything()
        return everything[-1 - which % len(everything)]

    def _everything(self) -> list[Generation]:
        return [generation for stream in self._all for generation in stream.generations.values()]

    def _start(
        self,
        stream: Stream,
        start: pb.Start,
        answer: str,
        may_end: set[grpc.StatusCode],
        gap: int = 1,
        all_may_end: set[grpc.StatusCode] | None = None,
    ) -> None:
        if not stream.is_open:
            return
        # What is not known to be over may hold a place. Where there are more than places, who comes later on another
        # stream may be first; and who waits for pictures may lose its place to another key.
        held = [one for one in self._everything() if one.finished is None or one.idempotency_key]
        own = [one for one in held if one.stream.key == stream.key]
        may_be_full = len(held) >= _MAX_PENDING or (stream.key != KEY and len(own) >= MAX_CONCURRENT)
        if may_be_full:
            may_end = may_end | {FULL}
            for one in held:
                one.may_end |= {FULL}
        if stream.is_faulty:
            may_end = may_end | {CANCELLED}
        if self._has_killed:
            may_end = may_end | {GONE}
        name = f"{self._name}-{next(self._numbers)}"
        house.begin(stream, start, name, answer, set(may_end), all_may_end=all_may_end, gap=gap)

    def _send_chunk(self, generation: Generation, index: int, data: bytes, *, last: bool) -> None:
        if generation.stream.is_open:
            chunk = pb.ImageChunk(image_index=index, data=data, last=last)
            generation.stream.send(generation.id, image_chunk=chunk)


def _check_record(generation: Generation, tries: list[Generation], records: dict[str, pb.UsageRecord]) -> None:
    """One record for a generation that has started, none for another. `tries` are all with its idempotency key."""
    found = [records[one.request_id] for one in tries if one.request_id in records]
    if not generation.has_started:
        # A caller who has left need not have heard that it has started.
        may_have_started = any(one.has_started or one.finished is None for one in tries)
        assert not found or may_have_started, "it is billed, and has never started"
        return
    assert found, "there is no usage record"
    if all(one.code is OK for one in tries):
        assert len(found) == 1, "it is billed more than once"
    assert all(record.outcome for record in found), "a usage record is open"
    if generation.finished is None:
        assert any(record.usage.completion_tokens >= generation.num_tokens for record in found)
        return
    usage, code = generation.finished.usage, generation.code
    assert code is not None
    if generation.idempotency_key and code is CANCELLED:  # the answer goes on
        assert any(record.usage.completion_tokens >= usage.completion_tokens for record in found)
        return
    assert any(
        (record.usage.prompt_tokens, record.usage.completion_tokens, record.outcome)
        == (usage.prompt_tokens, usage.completion_tokens, code.name)
        for record in found
    ), f"{found} is not {usage}"


@contextmanager
def _opened(note: Note) -> Iterator[Batch]:
    limits = {"max_pending": _MAX_PENDING, "max_image_bytes": _MAX_IMAGE_BYTES, "max_image_pixels": 100_000}
    with (
        background() as loop,
        running_server(loop, _LOADER, **limits) as (server, admin_key),
        grpc.insecure_channel(server.server.address) as channel,
    ):
        seen = house.House(server, loop, channel, admin_key)
        machine: Any = type("LifeCycle", (LifeCycle,), {"server": seen, "note": staticmethod(note)})

        def batch(seed: int, count: int, phases: tuple[Phase, ...] = ALL_PHASES) -> None:
            trial = settings(profile(count, phases), stateful_step_count=_STEPS)
            run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=trial)

        yield batch


LIFE_CYCLE = Target(name="life_cycle", opened=_opened, batch_size=40, smoke_size=8)
