"""Checks sources, configurations and documents against the glossary of the writing guide."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Pattern of a discouraged term -> standard term.
GLOSSARY = {
    r"pictures?": "image",
    r"folders?": "directory",
    r"whoever|whichever": "the caller, any rank",
    r"mend(s|ed|ing)?": "fix, repair",
    r"anew": "again",
    r"of before": "previous",
    r"besides?": "next to, also",
    r"alike|likewise": "identically, also",
    r"by turns": "in an interleaved A/B comparison",
    r"every so (many|often)": "every N steps",
    r"gives? up|gave up|lets? go": "aborts, releases",
    r"(is|are|was|were) told|tells?": "is logged, reports",
    r"bears?": "contains",
    r"passing faults?": "transient error",
    r"real pictures": "reference images",
    r"of (ours|theirs)": "our",
    r"a (step|rank|device|process|layer|row|image|class|second), (a|an|and)": "per",
    r"(?-i:is none)|is of no": "is not a",
}
PATTERN = re.compile("|".join(rf"\b(?:{term})\b" for term in GLOSSARY), re.IGNORECASE)
# Literals that recorded results, make variables or external formats contain.
ALLOWED = re.compile(
    r"""(['"])(reference_)?pictures\1|`pictures:`|"folder"|ImageFolder|imagefolder|"""
    r"\$\(FOLDER\)|set FOLDER|FOLDER=|FOLDER/CLASS|\(FOLDER, NAME|\.tell\(\)|there is none"
)
EXEMPT = {"tests/test_language.py"}
SUFFIXES = (".py", ".yaml", ".md", ".sh", ".toml", "Makefile")


def _files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    recorded = re.compile(r"experiments/.*/config_\w+\.yaml$")
    return [name for name in listed if name.endswith(SUFFIXES) and name not in EXEMPT and not recorded.search(name)]


def _faults(text: str) -> list[tuple[int, str]]:
    # An underscore separates words in identifiers.
    matches = (PATTERN.search(ALLOWED.sub("", line).replace("_", " ")) for line in text.splitlines())
    return [(number, match[0]) for number, match in enumerate(matches, 1) if match]


def test_the_glossary_is_kept():
    faults = {name: _faults((ROOT / name).read_text(encoding="utf-8")) for name in _files()}
    lines = [f"{name}:{number}: {word!r}" for name in faults for number, word in faults[name]]
    assert not lines, "use the standard term of GLOSSARY:\n" + "\n".join(lines)


@pytest.mark.parametrize("line", ["a folder", "x_folder_y = 1", "Pictures", "it is told once"])
def test_discouraged_terms_are_found(line):
    assert _faults(line)


@pytest.mark.parametrize("line", ["directory", '{"pictures": 3}', "bearing", "torchvision.datasets.ImageFolder"])
def test_standard_terms_pass(line):
    assert not _faults(line)
