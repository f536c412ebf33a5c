"""Configs and spaces of one's own: what may be left away, and mistakes that end in one line."""

import pytest

from experiments import build
from experiments.command_line import load_config
from experiments.sweep.plan import Plan
from experiments.sweep.space import load_space

RETURNS = """
from experiments.defaults import defaults


def get_config({parameters}):
    config = defaults()
    config.rule.learning_rate = 0.1
    config.until_s = {until_s}
    return config
"""


@pytest.fixture
def own(tmp_path):
    """Writes a file, and says where."""

    def write(text):
        (tmp_path / "own.py").write_text(text)
        return str(tmp_path / "own.py")

    return write


def test_a_config_without_variants_needs_no_list_of_them(own):
    for parameters in ("", 'variant=""', "variant"):
        config = load_config(own(RETURNS.format(parameters=parameters, until_s=3.0)))
        build.require_sound(config)
        assert config.until_s == 3.0


@pytest.mark.parametrize("parameters", ['size="small"', '*, size="small"', '*_, size="small"'])
def test_a_config_whose_variant_has_a_default_is_called_without(parameters, own):
    text = RETURNS.format(parameters=parameters, until_s='{"small": 1.0}[size]')
    assert load_config(own(text)).until_s == 1.0


def test_a_variant_that_is_given_by_name_is(own):
    until_s = '{"small": 1.0, "large": 9.0}[size]'
    for parameters in ('*, size="small"', 'size="small"', "size"):
        path = own(RETURNS.format(parameters=parameters, until_s=until_s) + "\nVARIANTS=['large']")
        assert load_config(f"{path}:large").until_s == 9.0
        if "=" in parameters:
            assert load_config(path).until_s == 1.0


def test_a_config_that_is_a_directory_is_said_to_be(tmp_path):
    (tmp_path / "own.py").mkdir()
    with pytest.raises(ValueError, match=r"config file '.*own\.py' is a directory: name a file"):
        load_config(str(tmp_path / "own.py"))


def test_a_config_that_lists_variants_is_told_which(own):
    text = RETURNS.format(parameters="variant", until_s="{'': 1.0, 'long': 9.0}[variant]")
    path = own(text + "\n\nVARIANTS = ['long']\n")
    assert [load_config(path).until_s, load_config(f"{path}:long").until_s] == [1.0, 9.0]
    with pytest.raises(ValueError, match=r"has no variant 'lon'; nearest: 'long'"):
        load_config(f"{path}:lon")


PLAIN = "import ml_collections\n\n\ndef get_config():\n    return {}\n"
WRONG = [
    ("def get_confg(): ...", "has no get_config: define get_config()"),
    ("get_config = 3", "has no get_config: define get_config()"),
    (PLAIN.format("None"), "it is None, not an ml_collections.ConfigDict: start from exper"),
    (PLAIN.format("{}"), "it is {}, not an ml_collections.ConfigDict"),
    (PLAIN.format('ml_collections.ConfigDict({"seed": 1})'),
     "the config lacks algorithm, batch_size, checkpoint, .*: start from experiments.defaults"),
    ("def get_config(:\n    pass", r"own\.py, line 1: SyntaxError: "),
    ("import nosuch", r"own\.py, line 1: ModuleNotFoundError: No module named 'nosuch'"),
    ("\nx = 1 / 0", r"own\.py, line 2: ZeroDivisionError: division by zero"),
    ("def get_config():\n    return nosuch", r"own\.py, line 2: NameError: name 'nosuch'"),
    ("def get_config(one, two):\n    return 3", r"own\.py: TypeError: .*'two'"),
    (RETURNS.format(parameters="", until_s="'soon'"), r"own\.py, line 8: TypeError"),
    (RETURNS.format(parameters="", until_s="3.0") + "\nVARIANTS = 'smoke'",
     r"VARIANTS='smoke' must be a tuple of names"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_wrong_with_a_config_is_one_line(text, said, own):
    path = own(text)
    with pytest.raises(ValueError, match=said) as found:
        load_config(path)
    assert path in str(found.value)


CHANGES = [
    ("del config.batch_size", "lacks batch_size: start from"),
    ("del config.cluster.latency_s", r"lacks cluster\.latency_s: start from"),
    ("del config.rule['name']", r"lacks rule\.name: start from"),
    ("config.batchsize = 3", "an unknown field 'batchsize'; nearest: 'batch_size'"),
    ("config.cluster.latency = 3.0", "unknown field 'cluster.latency'; nearest: 'latency_s'"),
    ("config.cluster = ml_collections.ConfigDict()", r"lacks cluster\.compute_s, cluster\.fail"),
    ("config = ml_collections.ConfigDict(config.to_dict() | {'cluster': 3})",
     "cluster=3 must be a group of fields"),
    ("config = ml_collections.ConfigDict(config.to_dict() | {'batch_size': 'many'})",
     "batch_size='many' must be int"),
    ("config = ml_collections.ConfigDict(config.to_dict() | {'seed': True})",
     "seed=True must be int"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[change for change, _ in CHANGES])
def test_a_config_must_have_every_field_and_no_other(change, said, own):
    text = RETURNS.format(parameters="", until_s=3.0).replace("return", f"{change}\n    return")
    with pytest.raises(ValueError, match=said):
        load_config(own("import ml_collections\n" + text))


def test_a_plain_config_that_has_every_field_will_do(own):
    text = RETURNS.format(parameters="", until_s=3.0)
    plain = text.replace("return config", "return ml_collections.ConfigDict(config.to_dict())")
    build.require_sound(load_config(own("import ml_collections\n" + plain)))


def test_a_variant_of_a_config_that_has_none_is_refused(own):
    path = own(RETURNS.format(parameters="", until_s=3.0))
    with pytest.raises(ValueError, match=r"no variant 'smoke': its get_config\(\) takes none"):
        load_config(f"{path}:smoke")
    path = own(RETURNS.format(parameters="variant", until_s=3.0))
    with pytest.raises(ValueError, match=r"no variant 'smoke'; list it in VARIANTS"):
        load_config(f"{path}:smoke")


@pytest.mark.parametrize("path", ["nosuch.py", "", "configs", "configs/quickstrt.py"])
def test_a_config_that_is_not_there_is_named(path):
    with pytest.raises(ValueError, match=f"no config file '{path}'; nearest|; there are: configs"):
        load_config(path)


SPACE = 'SPACE = {"rule.learning_rate": uniform(0.1, 0.2)}\n'


@pytest.mark.parametrize(
    "head",
    [
        "from experiments.sweep.space import *\n",
        "from configs._figure4 import *\nfrom experiments.sweep.space import uniform\n",
        "import math as M\nfrom experiments.sweep.space import *\n_LOW = low = M.pi\n",
    ],
)
def test_a_space_may_import_whatever_helps_it(head, own):
    space = load_space(own(head + SPACE))
    assert list(space.space) == ["rule.learning_rate"]
    assert space.sampler == ("tpe" if "_figure4" in head else "random")
    Plan(load_config("configs/quickstart.py:smoke"), space)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "SAMPLR = 'grid'",
            "unknown name 'SAMPLR'; nearest: 'SAMPLER'; begin the name of a helper with _",
        ),
        ("RATES, SEED = 3, 4", "unknown name 'RATES'"),
        ("trials = 5", "trials=5 has no effect: write TRIALS"),
        ("PRUNE_FROM = 0.5", "PRUNE_FROM=0.5 has no effect: set PRUNER as well"),
        ("TRIALS = True", r"^space '.*own\.py': TRIALS=True must be int or None$"),
        ("SEED = 1e23", r"SEED=1e\+23 must be int"),
        ("SEED = -1", r"seed=-1 must be a whole number from 0 to "),
        ("choice()", r"own\.py, line 3: "),
        ("uniform(2)", r"own\.py, line 3: TypeError"),
    ],
)
def test_what_is_wrong_with_a_space_is_one_line(more, said, own):
    with pytest.raises(ValueError, match=said):
        load_space(own(f"from experiments.sweep.space import choice, uniform\n{SPACE}{more}\n"))
