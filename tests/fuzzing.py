"""Random input for a given time: each example has a bound on its time, and all of them have one on their memory.

``GLIPV2_FUZZ_MINUTES`` is the time of one test (default: a tenth of a minute), ``GLIPV2_FUZZ_SEED`` the seed of its
first round (default: 14). A round of a seed draws the same examples every time.
"""

import contextlib
import faulthandler
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import hypothesis
from hypothesis import strategies as st

from glipv2_d2.errors import InputError

MINUTES = float(os.environ.get("GLIPV2_FUZZ_MINUTES", "0.1"))
FIRST_SEED = int(os.environ.get("GLIPV2_FUZZ_SEED", "14"))
EXAMPLES_OF_A_ROUND = 100
MOST_SECONDS = 10
MOST_BYTES = 2 * 10**9
# A call that never comes back ends the program with the traceback of where it hangs.
_HANGS_AFTER = 120

# Values that readers meet in files of others, and those that hurt.
ODD_VALUES = st.sampled_from(
    [
        *(None, True, 0, -1, 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, 10**25, -0.0, 0.5, 1e-310, 1e308),
        *(float("nan"), float("inf"), float("-inf"), "", " ", "0", "-1", "1e9", "nan", "null", "..", "/", "a/../b"),
        *("\x00", "\ud800", "\u202e", "\u2028", "é" * 300, "x" * 70_000, "[MASK]", "\r\n", "%s%n", "{}", "~", "*"),
        *([], {}, [[]], [None], [[[[[[]]]]]], [1, 2, 3, 4], [0] * 5000, {"id": 1}, {"": None}, [{"a": [{}]}]),
    ]
)
_BYTES = st.sampled_from(
    [
        *(b"\x00", b"\xff", b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x01"),
        *(b'"', b"\n", b"\r", b"\t", b"{", b"[", b"]", b"}", b",", b":", b"-", b"9" * 30, b"1e999", b"NaN", b"null"),
        *(b"<", b">", b"&", b"<!DOCTYPE x>", b"&a;", b"*a", b"&a ", b"!!", b"\\ud800", b"\xef\xbb\xbf", b"[" * 20_000),
    ]
) | st.binary(min_size=1, max_size=6)


def changed_bytes(data: st.DataObject, content: bytes, most_changes: int = 6) -> bytes:
    """A copy of some bytes in which a few places are replaced, removed, doubled or put in, or the end is cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, most_changes))):
        place = data.draw(st.integers(0, len(changed)))
        kind = data.draw(st.sampled_from(["flip", "replace", "insert", "remove", "double", "cut"]))
        if kind == "cut":
            del changed[place:]
        elif kind == "flip" and place < len(changed):
            changed[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            changed[place:place] = data.draw(_BYTES)
        elif kind == "replace":
            piece = data.draw(_BYTES)
            changed[place : place + len(piece)] = piece
        else:
            end = place + data.draw(st.integers(1, 40))
            changed[place:end] = changed[place:end] * 2 if kind == "double" else b""
    return bytes(changed)


def assert_holds_for_random_input(check: Callable[[st.DataObject], None], *refusals: type[Exception]) -> None:
    """Run a check on random examples until the time is over.

    Args:
        check: Gets an object that draws. It may raise InputError or OSError, in one line; everything else is a fault.
        refusals: Other exceptions that it may raise.

    Raises:
        Exception: The smallest example that was found for a fault; it took too long, needs too much memory, or ends
            with another exception. Hypothesis prints it, with the seed.
    """
    begin = time.monotonic()
    seed, examples, refused, slowest = FIRST_SEED, 0, 0, 0.0

    def example(data: st.DataObject) -> None:
        nonlocal examples, refused, slowest
        hypothesis.note(f"GLIPV2_FUZZ_SEED={seed}")
        faulthandler.dump_traceback_later(_HANGS_AFTER, exit=True, file=sys.__stderr__)
        # Of the processor: on a busy machine the time of the clock says little.
        start = time.process_time()
        too_large = False
        try:
            check(data)
        except (InputError, OSError, *refusals) as error:
            assert len(str(error).splitlines()) <= 1, f"an error of several lines: {error}"
            refused += 1
        except MemoryError:
            too_large = True
        finally:
            faulthandler.cancel_dump_traceback_later()
            examples += 1
            seconds = time.process_time() - start
            slowest = max(slowest, seconds)
        assert seconds < MOST_SECONDS
        # Outside of the handler: the traceback of the other error would keep its memory.
        assert not too_large, f"more than {MOST_BYTES} bytes"

    peak = _peak_megabytes()
    settings = hypothesis.settings(
        max_examples=EXAMPLES_OF_A_ROUND,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    with _quiet(), _limited_memory():
        while time.monotonic() - begin < 60 * MINUTES:
            hypothesis.seed(seed)(settings(hypothesis.given(st.data())(example)))()
            seed += 1
    sys.stdout.write(
        f"seeds {FIRST_SEED} to {seed - 1}, {(time.monotonic() - begin) / 60:.1f} minutes, {examples} examples, "
        f"{refused} refused, slowest {slowest:.2f} s, peak {peak} to {_peak_megabytes()} MB\n"
    )


def _peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Let the process have so many bytes more than it has now; beyond them Python raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep messages and warnings of thousands of examples out of the memory of pytest."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
