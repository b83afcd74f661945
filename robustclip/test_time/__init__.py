"""Test-time defences, one paper a file; each makes of a static classifier one that adapts to every image."""

from robustclip.test_time.dbd import DBD
from robustclip.test_time.ensemble import ViewEnsemble
from robustclip.test_time.rtpt import RTPT
from robustclip.test_time.tapt import TAPT, PromptAlign
from robustclip.test_time.tpt import TPT
from robustclip.test_time.ttc import TTC

TestTime = ViewEnsemble | TPT | PromptAlign | RTPT | TTC | TAPT | DBD
# What a model's name may begin with; the contract tests run over this dict.
TEST_TIME: dict[str, TestTime] = {
    "views": ViewEnsemble(),
    "tpt": TPT(),
    "promptalign": PromptAlign(),
    "rtpt": RTPT(),
    "ttc": TTC(),
    "tapt": TAPT(),
    "dbd": DBD(),
}

__all__ = ["DBD", "RTPT", "TAPT", "TEST_TIME", "TPT", "TTC", "PromptAlign", "TestTime", "ViewEnsemble"]
