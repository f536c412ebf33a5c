"""How runs were configured, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dbjax.files import plain
from experiments.defaults import defaults, flat
from experiments.report.read import Run


def configuration(runs: Sequence[Run]) -> dict[str, Any]:
    """In which fields the runs differ; of a single one, from the defaults."""
    several = len(runs) > 1
    configs = [flat(run.config) for run in runs]
    if not several:
        configs.insert(0, flat(plain(defaults().to_dict(), infinity="inf")))
    names = sorted(set().union(*configs))
    shown = {name: [_value(config, name) for config in configs] for name in names}
    differ = [[name, *values] for name, values in shown.items() if len(set(values)) > 1]
    said = (
        "Fields in which the runs differ." if several else "Fields that are not at their default."
    )
    if several and not differ:
        said = "The runs have the same configuration."
    return {
        "said": said,
        "differ": {
            "head": ["field", *([r.label for r in runs] if several else ["default", "this run"])],
            "rows": differ,
        },
        "equal": [[name, values[-1]] for name, values in shown.items() if len(set(values)) == 1],
    }


def _value(config: dict[str, Any], name: str) -> str:
    return json.dumps(config[name]) if name in config else "-"


def origin(runs: Sequence[Run]) -> list[list[str]]:
    """Commit, versions and machine of each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.about.get("versions", {})))
    rows = [[name, *(run.about["versions"].get(name, "-") for run in runs)] for name in names]
    commits = ["commit", *((run.about.get("commit") or "unknown")[:12] for run in runs)]
    hosts = ["machine", *(run.about.get("host", {}).get("platform", "unknown") for run in runs)]
    return [commits, *rows, hosts]
