import multiprocessing
import os
import signal

import numpy as np
import pytest

from keylock.errors import InputError
from keylock_server.guard import OTHER_UNITS, SAME_UNITS, UNHEARD_UNITS, Guard, GuardLimits, Mode
from keylock_server.guard.description import Secret, describe, digests

_LIMITS = GuardLimits(window_s=100.0, scores=2, labels=4 * UNHEARD_UNITS, memory_bytes=2**21)


class _Clock:
    """Shows what it is set to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return _Clock()


@pytest.fixture
def guard(clock):
    return Guard(_LIMITS, clock, np.random.default_rng(0))


def _pictures(count, *, size=32, channels=3, seed=0):
    """Pictures of a few waves in random directions, uint8 (count, size, size, channels)."""
    generator = np.random.default_rng(seed)
    waves = generator.uniform(-6, 6, (count, 5, channels, 2))
    phases = generator.uniform(0, 2 * np.pi, (count, 5, channels))
    places = np.stack(np.meshgrid(*[np.arange(size) / size] * 2, indexing="ij"), axis=-1)
    angles = 2 * np.pi * np.einsum("ijp,nkcp->nijkc", places, waves) + phases[:, None, None]
    return np.clip(128 + 40 * np.sin(angles).sum(axis=3), 0, 255).astype(np.uint8)


def _covered(picture, count):
    """Copies of a picture with a grey patch at different places."""
    side, copies = len(picture), np.repeat(picture[None], count, axis=0)
    for place, copy in enumerate(copies):
        top, left = divmod(place * side // 8, side)
        copy[top * side // 8 : top * side // 8 + side // 4, left : left + side // 4] = 128
    return copies


def _ask(guard, pixels, *, labels_only=False, mode=Mode.LIMIT, answers=()):
    """Ask for one picture after the other: which are answered. Of answers the guard is told, as far as there are."""
    found = []
    for number, row in enumerate(pixels):
        admission = guard.admit(row[None], labels_only=labels_only, mode=mode)
        found.append(admission.admitted)
        if admission.admitted and number < len(answers):
            guard.hear(admission, np.array([answers[number]]))
    return found


def test_near_copies_beyond_the_budget_are_refused(guard, clock):
    copies = _covered(_pictures(1)[0], 5)
    assert _ask(guard, copies) == [True, True, True, False, False]
    clock.now += 30
    refused = guard.admit(copies[4:], labels_only=False)
    assert (refused.row, refused.retry_after_s, refused.labels_left) == (0, 70.0, True)


def test_labels_go_on_within_their_own_budget(guard):
    copies = _covered(_pictures(1)[0], 7)
    assert _ask(guard, copies[:4])[-1] is False
    assert _ask(guard, copies[3:], labels_only=True) == [True, True, False, False]
    assert not guard.admit(copies[-1:], labels_only=False).labels_left


@pytest.mark.parametrize(("label", "units"), [(4, SAME_UNITS), (5, OTHER_UNITS)])
def test_a_label_that_differs_from_the_one_before_is_charged_more(clock, label, units):
    guard = Guard(GuardLimits(labels=40), clock, np.random.default_rng(0))
    copies = _covered(_pictures(1)[0], 40)
    found = _ask(guard, copies, labels_only=True, answers=20 * [4, label])
    # The first is no near copy, and the last one is charged as if nothing were known of it.
    assert sum(found) == 2 + (40 - UNHEARD_UNITS) // units
    assert found == sorted(found, reverse=True)


def test_a_clip_whose_label_stays_goes_on(clock):
    guard = Guard(GuardLimits(), clock, np.random.default_rng(0))
    picture = _pictures(1, size=64)[0]
    frames = [np.roll(picture, step, axis=1) for step in range(30)]
    assert all(_ask(guard, frames, labels_only=True, answers=30 * [2]))
    assert guard.status().near_copies >= 15


def test_a_label_that_changes_for_good_is_charged_once(clock):
    guard = Guard(GuardLimits(labels=OTHER_UNITS + 9 * SAME_UNITS + UNHEARD_UNITS), clock, np.random.default_rng(0))
    answers = 5 * [3] + 5 * [4]
    assert all(_ask(guard, _covered(_pictures(1)[0], 10), labels_only=True, answers=answers))


def test_what_is_not_heard_of_stays_charged_and_hinders_nothing_else(guard):
    copies = _covered(_pictures(1)[0], 6)
    for copy in copies[:5]:
        guard.admit(copy[None], labels_only=True)
    refused = guard.admit(copies[5:], labels_only=True)
    assert not refused.admitted
    guard.hear(refused, np.array([0]))
    guard.hear(guard.admit(copies[:1], labels_only=True), np.array([0]))
    assert _ask(guard, copies[5:], labels_only=True) == [False]
    assert all(_ask(guard, _pictures(3, seed=5), labels_only=True))


def test_what_was_forgotten_meanwhile_is_not_charged(clock):
    guard = Guard(GuardLimits(memory_bytes=2**16), clock, np.random.default_rng(0))
    late = guard.admit(_pictures(1), labels_only=True)
    guard.admit(_pictures(192, seed=1), labels_only=True, mode=Mode.COUNT)
    before = bytes(guard._memory._shared)
    guard.hear(late, np.array([1]))
    assert bytes(guard._memory._shared) == before


def test_labels_of_a_batch_are_those_of_its_pictures(guard):
    batch = np.concatenate([_covered(_pictures(1)[0], 3), _pictures(2, seed=3)])
    admission = guard.admit(batch, labels_only=True)
    with pytest.raises(InputError, match="asked about 5 pictures"):
        guard.hear(admission, np.zeros(2, np.int64))
    guard.hear(admission, np.array([1, 1, 1, 7, 8]))
    # Two near copies with the label of their picture were charged.
    more = _covered(_pictures(1)[0], 8)[3:]
    assert _ask(guard, more, labels_only=True) == [True, True, True, False, False]


def test_other_pictures_are_answered(guard):
    assert all(_ask(guard, _pictures(100)))
    assert guard.status().near_copies <= 3


def test_identical_pictures_are_no_near_copies(guard):
    picture = _pictures(1)
    assert all(guard.admit(np.repeat(picture, 500, axis=0), labels_only=False).admitted for _ in range(4))
    assert (guard.status().near_copies, guard.status().identical) == (0, 1999)


def test_what_was_answered_with_a_label_is_no_way_to_scores(guard):
    copies = _covered(_pictures(1)[0], 3)
    assert all(_ask(guard, copies, labels_only=True))
    assert _ask(guard, copies) == [True, True, False]
    assert all(_ask(guard, copies, labels_only=True))


def test_a_batch_is_answered_whole_or_not_at_all(guard):
    copies, before = _covered(_pictures(1)[0], 4), _pictures(2, seed=1)
    refused = guard.admit(np.concatenate([before, copies]), labels_only=False)
    assert (refused.admitted, refused.row) == (False, 5)
    assert guard.status().entries == 0
    assert guard.admit(copies[:3], labels_only=False).admitted


def test_with_count_everything_is_answered_and_what_would_be_refused_is_counted(clock):
    guards = [Guard(_LIMITS, clock, np.random.default_rng(0)) for _ in Mode]
    copies = np.concatenate([_covered(_pictures(1)[0], 7), _pictures(3, seed=2)])
    counted, limited = (_ask(guard, copies, mode=mode) for guard, mode in zip(guards, Mode, strict=True))
    assert all(counted)
    assert limited.count(False) == 4
    assert guards[0].status() == guards[1].status()
    assert guards[0].status().refused == 4


def test_a_near_copy_of_a_near_copy_belongs_to_the_same_picture(guard):
    start, end = _pictures(2)
    steps = [(start * (1 - share) + end * share).astype(np.uint8) for share in np.linspace(0, 1, 20)]
    assert sum(_ask(guard, steps)) < 10


def test_the_window_ends(guard, clock):
    copies = _covered(_pictures(1)[0], 5)
    assert _ask(guard, copies)[-1] is False
    clock.now += _LIMITS.window_s
    assert guard.status().entries == 0
    assert _ask(guard, copies[3:]) == [True, True]


@pytest.mark.parametrize("pixels", [np.full((1, 32, 32, 3), 7, np.uint8), np.zeros((1, 1, 1, 1), np.float32)])
def test_pictures_of_one_colour_are_never_near_copies(guard, pixels):
    rows = [pixels + np.asarray(step, pixels.dtype) for step in range(20)]
    assert all(guard.admit(row, labels_only=False).admitted for row in rows)
    assert guard.status().near_copies == 0


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 5, 3, 1), (1, 31, 45, 4), (1, 300, 200, 3), (1, 224, 224, 1)])
def test_pictures_of_any_size_are_taken(guard, shape):
    pixels = np.random.default_rng(0).random(shape, np.float32)
    assert guard.admit(pixels, labels_only=False).admitted


@pytest.mark.parametrize("side", [4, 8, 12, 16, 24])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_of_noise_are_told_apart(guard, side, channels):
    noise = np.random.default_rng(0).integers(0, 256, (300, side, side, channels), dtype=np.uint8)
    assert all(_ask(guard, noise))
    assert guard.status().near_copies <= 3


def test_copies_of_small_pictures_are_recognised(guard):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    copies = np.repeat(noise[None], 6, axis=0)
    copies[np.arange(6), np.arange(6), 3] ^= 128
    assert _ask(guard, copies) == [True, True, True, False, False, False]


def test_pictures_that_are_built_alike_do_not_become_one(clock):
    guard = Guard(GuardLimits(memory_bytes=2**22), clock, np.random.default_rng(0))
    frame, inside = _pictures(1, size=64)[0], _pictures(120, size=64, seed=1)
    inside[:, :14], inside[:, -6:] = frame[:14], frame[-6:]
    assert all(_ask(guard, inside, labels_only=True, answers=120 * [0]))


def test_pixels_are_described_alike_however_they_lie_in_memory():
    secret = Secret.draw(np.random.default_rng(0))
    pixels = np.random.default_rng(1).random((2, 48, 64, 3), np.float32)
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.25, 0.5, 1], np.float32)
    planes = np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    for plain, other in zip(describe(pixels, secret), describe(planes, secret, scale=std, shift=mean), strict=True):
        assert len(np.intersect1d(plain.codes, other.codes)) > 0.95 * len(plain.codes)


def test_digests_are_those_of_a_picture_and_its_shape_alone():
    secret, generator = Secret.draw(np.random.default_rng(0)), np.random.default_rng(1)
    pixels = generator.random((6, 5, 4, 3), np.float32)
    changed = pixels.copy()
    changed[3, 2, 1, 0] = np.nextafter(changed[3, 2, 1, 0], np.float32(2))
    first, second = digests(pixels, secret), digests(changed, secret)
    assert [row for row in range(6) if first[row] != second[row]] == [3]
    assert digests(pixels[2:], secret) == first[2:]
    assert not set(first) & set(digests(pixels.reshape(6, 4, 5, 3), secret))
    assert not set(first) & set(digests(pixels, Secret.draw(generator)))


def test_no_pixels_are_refused_with_a_clear_error(guard):
    with pytest.raises(InputError, match=r"\(n, height, width, channels\)"):
        guard.admit(np.zeros((2, 0, 4, 3), np.float32), labels_only=False)


def test_a_full_memory_forgets_and_does_not_grow(clock):
    guard = Guard(GuardLimits(memory_bytes=2**16), clock, np.random.default_rng(0))
    for seed in range(3):
        guard.admit(_pictures(64, seed=seed), labels_only=False, mode=Mode.COUNT)
    assert guard.status().memory_bytes == 2**16
    assert guard.status().entries < 192


def test_a_picture_that_is_asked_about_outlasts_a_flood(clock):
    guard = Guard(GuardLimits(memory_bytes=2**17), clock, np.random.default_rng(0))
    copies = _covered(_pictures(1, seed=99)[0], 5)
    assert all(_ask(guard, copies[:3]))
    for seed in range(4):
        guard.admit(_pictures(64, seed=seed), labels_only=False, mode=Mode.COUNT)
    assert _ask(guard, copies[3:]) == [False, False]


def _ask_in_worker(guard, pixels, answers):
    answers.put(_ask(guard, pixels))


def _hear_in_worker(guard, admission, labels):
    guard.hear(admission, labels)


def _hold_lock(guard, held):
    with guard._memory.locked():
        held.set()
        signal.pause()


def test_processes_share_what_they_know(guard):
    copies, context = _covered(_pictures(1)[0], 5), multiprocessing.get_context("fork")
    assert all(_ask(guard, copies[:3]))
    answers = context.Queue()
    worker = context.Process(target=_ask_in_worker, args=(guard, copies[3:], answers))
    worker.start()
    assert answers.get(timeout=20) == [False, False]
    worker.join()


def test_what_one_process_hears_all_know(clock):
    guard, copies = Guard(GuardLimits(), clock, np.random.default_rng(0)), _covered(_pictures(1)[0], 4)
    guard.hear(guard.admit(copies[:1], labels_only=True), np.array([1]))
    told = [guard.admit(copies[1:2], labels_only=True), guard.admit(copies[2:3], labels_only=True)]
    for label, admission in enumerate(told, 2):
        worker = multiprocessing.get_context("fork").Process(
            target=_hear_in_worker, args=(guard, admission, np.array([label]))
        )
        worker.start()
        worker.join(20)
    assert not guard.admit(copies[3:], labels_only=True).admitted


def test_a_worker_killed_while_it_holds_the_lock_blocks_nobody(guard):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    worker = context.Process(target=_hold_lock, args=(guard, held))
    worker.start()
    assert held.wait(20)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert guard.admit(_pictures(1), labels_only=False).admitted


def test_the_memory_holds_no_pixels(guard):
    pictures = _pictures(20)
    guard.admit(pictures, labels_only=False)
    held = bytes(guard._memory._shared)
    assert not any(picture[row].tobytes() in held for picture in pictures for row in range(32))
    assert "Secret(...)" in repr(guard._secret)
