"""The run directory: metrics, summary, parameters, timeline and provenance of a run on disk."""

from dbjax.run_dir.writer import EVENTS as EVENTS
from dbjax.run_dir.writer import METRICS as METRICS
from dbjax.run_dir.writer import SUMMARY as SUMMARY
from dbjax.run_dir.writer import RunWriter as RunWriter
from dbjax.run_dir.writer import is_written as is_written
