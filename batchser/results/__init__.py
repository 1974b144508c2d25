"""The tables, read again: OUT → calls and windows, filtered before they are read; conditions, moments, a night.

The other way round than ``sink``: nothing here writes.
"""

from batchser.results.conditions import Condition, parse_condition
from batchser.results.moments import Moment, select_moments
from batchser.results.opening import Results, open_results

__all__ = ["Condition", "Moment", "Results", "open_results", "parse_condition", "select_moments"]
