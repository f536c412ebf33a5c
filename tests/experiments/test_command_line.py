"""Overrides, and mistakes that end in one line, naming the nearest right thing."""

import sys

import pytest

from experiments import demo, run
from experiments.command_line import command, load_config, parse
from experiments.defaults import defaults
from experiments.saved import restored

QUICKSTART = "--config=configs/quickstart.py:smoke"


def fields(*arguments):
    return parse([QUICKSTART, *arguments]).config


def test_fields_take_values_of_their_type():
    config = fields(
        "--config.until_s=4",
        "--config.options.replicas=3",
        "--config.cluster.machine.bandwidth_bytes_per_s=inf",
        "--config.data_dir=some/where",
        "--config.runtime=threads",
    )
    assert (config.until_s, config.options.replicas) == (4.0, 3)
    assert isinstance(config.until_s, float)
    assert config.cluster.machine.bandwidth_bytes_per_s == float("inf")
    assert (config.data_dir, config.runtime) == ("some/where", "threads")
    assert fields("--config.until_s=none").until_s is None


def test_groups_take_any_argument_of_what_they_name():
    assert fields("--config.options.n_fetch=5").options.n_fetch == 5
    assert fields("--config.model.name=mlp", "--config.model.widths=(8, 4)").model.widths == (8, 4)


def test_naming_another_drops_the_arguments_of_the_one_before():
    rule = fields("--config.rule.name=adam", "--config.rule.b1=0.8").rule
    assert rule.to_dict() == {"name": "adam", "b1": 0.8}
    assert fields("--config.algorithm=sgd").options.to_dict() == {}
    assert "replicas" in fields("--config.algorithm=downpour").options  # the same as before


def test_overrides_leave_the_file_alone():
    assert fields("--config.until_s=1").until_s == 1.0
    assert load_config("configs/quickstart.py").until_s == 20.0


MISTAKES = [
    ([], "needs --config=FILE and --workdir=DIR"),
    (["--config=configs/quickstrt.py"], "nearest: 'configs/quickstart.py'"),
    (["--config=configs/quickstart.py:smok"], "has no variant 'smok'; nearest: 'smoke'"),
    ([QUICKSTART, "--wrkdir=x"], "no flag --wrkdir; nearest: --workdir"),
    ([QUICKSTART, "--bla=x"], "no flag --bla; there are: --config, --workdir"),
    ([QUICKSTART, "--runtime=ray"], "no flag --runtime; nearest: --config.runtime"),
    ([QUICKSTART, "--until=3"], "no flag --until; nearest: --config.until_s"),
    ([QUICKSTART, "--cluster.latency_s=3"], "nearest: --config.cluster.latency_s"),
    ([QUICKSTART, "workdir"], "is not of the form --name=value"),
    (["--config.until_s=3"], "needs --config=FILE"),
    ([QUICKSTART, "--config.untl_s=3"], "no field 'untl_s'; nearest: 'until_s'"),
    ([QUICKSTART, "--config.until_s.x=3"], "'until_s' has no fields"),
    ([QUICKSTART, "--config.cluster=3"], "is a group of fields"),
    ([QUICKSTART, "--config.cluster.latency=3"], "nearest: 'latency_s'"),
    ([QUICKSTART, "--config.batch_size=many"], "must be int, like 32"),
    ([QUICKSTART, "--config.batch_size=None"], "must be int, like 32"),
    ([QUICKSTART, "--config.batch_size=9999"], "batch_size=9999 is more than all"),
    ([QUICKSTART, "--config.batch_size=0"], "batch_size=0 must be at least 1"),
    ([QUICKSTART, "--config.until_s=-1"], "until_s=-1.0 must be above 0"),
    ([QUICKSTART, "--config.evaluations=0"], "evaluations=0 must be at least 1"),
    ([QUICKSTART, "--config.runtime=thread"], "neither 'virtual' nor 'threads'"),
    ([QUICKSTART, "--config.executor=fast"], "neither 'auto' nor 'engine' nor 'compiled'"),
    ([QUICKSTART, "--config.executor=compiled", "--config.runtime=threads"],
     "executor='compiled': runtime='threads' is timed by real machines; use executor='auto'"),
    ([QUICKSTART, "--config.algorithm=downpor"], "nearest: 'downpour'"),
    ([QUICKSTART, "--config.options.n_fech=2"], "nearest: 'n_fetch'"),
    ([QUICKSTART, "--config.options.n_fetch=two"], "n_fetch='two' must be int"),
    ([QUICKSTART, "--config.options.replicas=0"], "downpour.replicas=0 must be at least 1"),
    ([QUICKSTART, "--config.options.replicas=9999"], "cannot be divided among replicas=9999"),
    ([QUICKSTART, "--config.options.shards=99"], "shards=99 is too many"),
    ([QUICKSTART, "--config.rule.name=sgdd"], "no rule 'sgdd'; nearest: 'sgd'"),
    ([QUICKSTART, "--config.rule.name=zzz"], "no rule 'zzz'; there are: downpour_adagrad, ada"),
    ([QUICKSTART, "--config.rule.rate=1"], "nearest: 'learning_rate'"),
    ([QUICKSTART, "--config.rule.name=safe_norm", "--config.rule.x=0.0",
      "--config.rule.min_norm=0.0"], "is not a rule"),
    ([QUICKSTART, "--config.rule.name=lamb", "--config.rule.learning_rate=0.1"],
     "scale_by_trust_ratio is not elementwise"),
    ([QUICKSTART, "--config.data.name=digit"], "nearest in dbjax: 'digits'"),
    ([QUICKSTART, "--config.data.name=fashion_mnst"], "nearest: 'fashion_mnist'"),
    ([QUICKSTART, "--config.data.num_example=9"], "nearest: 'num_examples'"),
    ([QUICKSTART, "--config.model.name=mpl"], "no model 'mpl'; nearest: 'mlp'"),
    ([QUICKSTART, "--config.model.classes=3"], "model 'softmax' has no 'classes'"),
    ([QUICKSTART, "--config.cluster.machine.law=gauss"], "one of constant, lognormal"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(arguments, text, tmp_path, monkeypatch, capsys):
    given = [*arguments, f"--workdir={tmp_path / 'run'}"] if QUICKSTART in arguments else arguments
    monkeypatch.setattr(sys, "argv", ["run", *given])
    with pytest.raises(SystemExit) as end:
        command(run.main)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert text in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("file", "fields", "title"), [
    ("speech_downpour_adagrad", [], "Downpour + Adagrad [20]"),
    ("speech_sgd", [], "SGD [1]"),
    ("quickstart", ["--config.options.replicas=3"], "Downpour [3]"),
    ("digits_sandblaster", ["--config.rule.name=conjugate_gradients"], "Sandblaster [8]"),
    ("speech_sandblaster", [], "Sandblaster L-BFGS [200]"),
])  # fmt: skip
def test_pictures_name_a_run(file, fields, title):
    assert run.title(parse([f"--config=configs/{file}.py", *fields]).config) == title


def test_an_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir '.*file/run' cannot be written"):
        run.main([QUICKSTART, f"--workdir={tmp_path / 'file' / 'run'}"])


def test_help_lists_configs_and_fields(capsys):
    assert run.main(["--help"]) == 0
    assert "configs/speech_downpour_adagrad.py" in capsys.readouterr().out
    assert run.main(["--help", "--config=configs/quickstart.py"]) == 0
    said = capsys.readouterr().out
    assert "--config.cluster.machine.sigma=0.3" in said
    assert "--config.rule.learning_rate=0.05" in said
    assert demo.main(["--help"]) == 0


def test_the_demos_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no method 'adgrad'; nearest: 'adagrad'"):
        demo.main([f"--workdir={tmp_path}", "--methods=adgrad"])
    with pytest.raises(ValueError, match="needs --workdir=DIR"):
        demo.main([])


def test_fields_by_their_former_names_are_refused_with_the_new_one(tmp_path):
    with pytest.raises(ValueError, match=r"'cut\.devices' was renamed: use 'sharding\.devices'"):
        fields("--config.cut.devices=2")
    own = tmp_path / "own.py"
    own.write_text(
        "from experiments.defaults import defaults\n\n\n"
        "def get_config():\n    config = defaults()\n    config.cut.devices = 2\n"
        "    return config\n"
    )
    with pytest.raises(ValueError, match="line 6: the config's field 'cut' was renamed: use 'sha"):
        parse([f"--config={own}"])
    saved = defaults().to_dict()
    saved["cut"] = saved.pop("sharding")
    with pytest.raises(ValueError, match="its field 'cut' was renamed 'sharding'; run it again"):
        restored(saved, "old")
