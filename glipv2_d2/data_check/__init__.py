"""What can be said of data before anything is trained: images, boxes and names, as lines and as a page."""

from .check import check_own_sets, configured_sets, find_reported, report_of_readers
from .findings import Finding
from .report import DataFindings

__all__ = ["DataFindings", "Finding", "check_own_sets", "configured_sets", "find_reported", "report_of_readers"]
