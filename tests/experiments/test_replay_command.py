"""The command that does a run again from its event log."""

import json

from experiments import replay, run

GIVEN = ["--config=configs/quickstart.py", "--config.runtime=threads", "--config.until_s=none",
         "--config.options.steps=40", "--config.options.overlap=true"]  # fmt: skip


def test_a_run_in_threads_is_replayed(tmp_path, capsys):
    assert run.main([*GIVEN, f"--workdir={tmp_path}"]) == 0
    assert replay.main([f"--workdir={tmp_path}"]) == 0
    assert "the same bytes" in capsys.readouterr().out
    summary = tmp_path / "summary.json"
    said = json.loads(summary.read_text())
    summary.write_text(json.dumps(said | {"params_sha256": "0" * 64}))
    assert replay.main([f"--workdir={tmp_path}"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
