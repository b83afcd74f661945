"""What a command will take on this machine, told before it starts."""

import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

LONG = 600.0  # seconds from which on a command tells by itself


@dataclass(frozen=True)
class Forecast:
    """What something will take: `seconds` in all, of which it holds `gpus`, and `facts` (name -> what) in the order they are read.

    `least` are the seconds where an evaluation may end so much earlier, since images that an attack breaks are attacked no more.
    """

    what: str
    facts: Mapping[str, str]
    seconds: float
    gpus: float = 0.0
    least: float | None = None

    @property
    def at_least(self) -> float:
        """The fewest seconds that it may take."""
        return self.seconds if self.least is None else self.least

    def __str__(self) -> str:
        facts = dict(self.facts) | {"time": f"about {span((self.at_least, self.seconds), duration)}"}
        if self.gpus:
            facts["GPU-hours"] = f"{self.gpus * self.seconds / 3600:.3g}"
        return f"{self.what}\n" + "\n".join(f"  {name:10}  {said}" for name, said in facts.items())


def duration(seconds: float) -> str:
    """Return seconds as one reads them: "45 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def left(done: float, total: float, seconds: float) -> str:
    """Return ", about 12 min left" if the rest goes as fast as what is done; nothing while nothing tells, or nothing is left."""
    return f", about {duration(seconds / done * (total - done))} left" if 0 < done < total else ""


def amount(n: float) -> str:
    """Return a number of bytes as one reads it: "512 B", "3.4 GB" (of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def number(n: int, what: str) -> str:
    """Return "1 model", "2 models", "1,000 models"."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def span(values: Iterable[float], said: Callable[[float], str] = "{:,}".format) -> str:
    """Return "8" of numbers that read alike, "8 to 64" of others."""
    values = [*values]
    least, most = said(min(values)), said(max(values))
    return least if least == most else f"{least} to {most}"


def memory(each: float, what: str, at_once: int = 1) -> str:
    """Return "2 GB a worker", with what all take that run at once: "2 GB a worker, 4 GB of 2 at once"."""
    return f"{amount(each)} {what}" + (f", {amount(at_once * each)} of {at_once} at once" if at_once > 1 else "")


def held() -> float:
    """Return the bytes that this process has held at most: of a GPU where it used one, else of memory."""
    import torch

    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return cuda or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes, on a GPU until it is done."""
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
