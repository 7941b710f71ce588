"""The table of `gpu.py`: its columns, how a row is kept, and the time that is left."""
import csv
import os
import signal
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

#: column → what it holds
FIELDS = {
    "at_s": "seconds since the start when the row was written",
    "device": "the card, or the processor",
    "torch": "PyTorch's version",
    "commit": "of the code; + where files differ from it",
    "measurement": "what was measured",
    "method": "one of the paper's four",
    "backbone": "the frozen network",
    "side": "of the images, in pixels",
    "batch": "episodes per step; of an evaluation, that go through the decoder together",
    "precision": "float32, tf32 or bf16",
    "compiled": "whether the decoder went through torch.compile",
    "features": "online: the backbone is in the step; kept: its features are in the card's memory; "
    "views: they are read from files",
    "n": "how many times were taken",
    "seconds": "their median",
    "q25": "their lower quartile",
    "q75": "their upper quartile",
    "per_second": "how many a second of what `unit` says",
    "unit": "of per_second",
    "decoder_s": "seconds of reduction and decoder, forward and backward, median",
    "tflop": "of reduction and decoder, forward and backward, by PyTorch's counter",
    "share": "of the measured matmul rate of that precision, in reduction and decoder",
    "peak_mib": "the most memory in use on the card",
    "busy": "share of the time in which the card computes or copies",
    "ratio": "seconds over those of `to`, median of pairs taken in turn",
    "to": "what the ratio is to",
    "latent": "share of the images that have a latent region",
    "score": "mIoU in percent, or tests passed",
    "status": "ok, or what went wrong",
    "note": "anything else",
}
OK = "ok"


def spread(seconds):
    "n, median and quartiles of some times, as columns."
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    )
    return {"n": len(seconds), "seconds": middle, "q25": low, "q75": high}


def rounded(value):
    "Numbers with five digits."
    return float(f"{value:.5g}") if isinstance(value, float) else value


class Table:
    "Rows of one file, each on the disk as soon as it is made."

    def __init__(self, path, constants):  # a new file; columns that are the same in every row
        self.path, self.constants, self.rows = Path(path), constants, []
        self.start = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("x", newline="") as f: csv.writer(f).writerow(FIELDS)

    def add(self, row):
        "Append a row; columns that it lacks stay empty."
        row = {"status": OK, **self.constants, **row}
        row["at_s"] = round(time.monotonic() - self.start, 1)
        unknown = row.keys() - FIELDS.keys()
        if unknown: raise KeyError(f"no such column: {', '.join(sorted(unknown))}")
        row = {name: rounded(row.get(name, "")) for name in FIELDS}
        with self.path.open("a", newline="") as f:
            csv.writer(f).writerow(row.values())
            f.flush()
            os.fsync(f.fileno())
        self.rows.append(row)
        return row


class OutOfTime(BaseException):
    "A measurement took longer than it may. No Exception: what catches those must not catch it."


@contextmanager
def limited(seconds):
    "Raise OutOfTime in the block when the seconds are over, and again every 5 s until it is left."
    def stop(*_): raise OutOfTime
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds), 5)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def covered(intervals):  # (start, length) each, in any unit
    "The length that intervals cover together, overlaps counted once."
    total, end = 0.0, float("-inf")
    for start, length in sorted(intervals):
        total += max(0.0, start + length - max(start, end))
        end = max(end, start + length)
    return total


def reason(error):
    "What went wrong, in one line of at most 160 characters."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160].rstrip(": ")
