"""What a run leaves on disk."""

from dbjax.workdir.alone import LOCK as LOCK
from dbjax.workdir.alone import alone_in as alone_in
from dbjax.workdir.files import prepare as prepare
from dbjax.workdir.files import read_json as read_json
from dbjax.workdir.files import write_json as write_json
from dbjax.workdir.leave import EVENTS as EVENTS
from dbjax.workdir.leave import METRICS as METRICS
from dbjax.workdir.leave import SUMMARY as SUMMARY
from dbjax.workdir.leave import Workdir as Workdir
from dbjax.workdir.leave import is_left as is_left
