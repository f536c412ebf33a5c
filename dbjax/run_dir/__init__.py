"""What a run leaves on disk."""

from dbjax.run_dir.files import prepare as prepare
from dbjax.run_dir.files import read_json as read_json
from dbjax.run_dir.files import write_json as write_json
from dbjax.run_dir.lock import LOCK as LOCK
from dbjax.run_dir.lock import lock_directory as lock_directory
from dbjax.run_dir.writer import EVENTS as EVENTS
from dbjax.run_dir.writer import METRICS as METRICS
from dbjax.run_dir.writer import SUMMARY as SUMMARY
from dbjax.run_dir.writer import RunWriter as RunWriter
from dbjax.run_dir.writer import is_written as is_written
