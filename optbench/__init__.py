"""For test suites: a paired assertion on step times, and optimizers stepped through pytest-benchmark.

The command line and the harness are in ``harness``; this package is what other projects' tests import.
"""

from optbench.paired import InconclusiveWarning, NotSlower, assert_not_slower

__all__ = ["InconclusiveWarning", "NotSlower", "assert_not_slower"]
