"""README and docs say what is so: the listing, the example, the commands, the paths."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path("README.md").read_text()
MODELS = Path("docs/models.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]


def test_algorithm_1_1_is_printed_as_it_stands():
    source = Path("dbjax/algorithms/downpour.py").read_text()
    listing = next(text for text in PYTHON if "Algorithm 1.1" in text)
    assert listing.strip() in source


def test_the_library_examples_run_as_printed(capsys):
    examples = [text for text in PYTHON if "async def" not in text]
    assert len(examples) == 6
    names = {}
    said = []
    for example in examples:
        assert len(example.strip().splitlines()) < 20
        exec(compile(example, "README.md", "exec"), names)
        said.append(capsys.readouterr().out)
    assert float(said[0].split()[-1]) < 0.05  # error of Downpour
    assert said[1].startswith(("gradient norm", "relative decrease"))
    assert "'won': " in said[2]
    assert "bytes_per_iteration" in said[2]
    assert said[3].split() == ["Linear", "State", "dict", "list"]
    assert said[4].split() == ["1000000000000.0", "2000000000", "()"]


def test_the_recipes_for_models_run_as_printed(capsys):
    names = {}
    for example in re.findall(r"```python\n(.*?)```", MODELS, re.DOTALL):
        exec(compile(example, "docs/models.md", "exec"), names)
    *said, dropout, normalised = capsys.readouterr().out.splitlines()
    assert said == ["['hidden', 'out']", "Net", "['bias', 'kernel']"]
    assert max(float(dropout), float(normalised)) < 0.8 * np.var(names["y"])  # they learn


def test_commands_name_what_there_is():
    shell = "\n".join(text for language, text in BLOCKS if language in ("sh", "bash"))
    targets = set(re.findall(r"^(\w[\w-]*):", Path("Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"make (\w+)", shell)) <= targets
    for module in re.findall(r"python -m ([\w.]+)", shell):
        if module.startswith(("experiments", "benchmarks", "dbjax")):
            path = Path(*module.split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    for config in re.findall(r"--config=(\S+?\.py)", README):
        assert Path(config).exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *Path("docs").rglob("*.md")])
def test_links_and_paths_lead_somewhere(page):
    page = Path(page)
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+?)\)", text):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:dbjax|tests|configs|experiments|benchmarks)/[\w/.]*)", text):
        assert Path(path.rstrip(".")).exists() or "NAME" in path, path
