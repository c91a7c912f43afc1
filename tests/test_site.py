# SPDX-License-Identifier: Apache-2.0
"""The site: it describes every public name, its links lead somewhere, and it builds."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

import pyro_neuralrg

ROOT = Path(pyro_neuralrg.__file__).parents[1]
FOLDER = ROOT / "tutorials"
GENERATED = FOLDER / "reference"
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *FOLDER.rglob("*.md")] if GENERATED not in path.parents
)

FENCE = re.compile(r"^(`{3,}|:{3,}).*?^\1 *$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(<?([^()\s<>]+(?:\([^()\s]*\)[^()\s<>]*)*)>?(?: \"[^\"]*\")?\)")
ADDRESS = re.compile(r"https?:[^\s`<>\"')\]]+")
CODE = re.compile(r"^\.\. auto(?:class|function):: (\S+)$", flags=re.MULTILINE)
DATA = re.compile(r"^\.\. py:data:: (\S+)\n   :module: (\S+)$", flags=re.MULTILINE)

spec = importlib.util.spec_from_file_location("reference", FOLDER / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

every_page = pytest.mark.parametrize(
    "path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def public_objects() -> Iterator[tuple[str, str]]:
    """Packages and the names that their ``__all__`` exports."""
    walked = pkgutil.walk_packages(pyro_neuralrg.__path__, "pyro_neuralrg.")
    for name in ["pyro_neuralrg", *(info.name for info in walked if info.ispkg)]:
        for public in getattr(importlib.import_module(name), "__all__", []):
            yield name, public


PUBLIC = sorted({name for _, name in public_objects()})


def described() -> list[str]:
    """Full names of the directives on all pages of the reference."""
    text = "\n".join(reference.pages().values())
    return CODE.findall(text) + [f"{package}.{name}" for name, package in DATA.findall(text)]


def lacking() -> set[str]:
    """Public names that no page describes."""
    return set(PUBLIC) - {full.rpartition(".")[2] for full in described()}


def test_every_public_name_is_described_once() -> None:
    assert not lacking()
    names = [full.rpartition(".")[2] for full in described()]
    assert sorted(names) == PUBLIC


def test_a_name_without_an_entry_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = reference.entry
    monkeypatch.setattr(
        reference, "entry", lambda package, name: "" if name == "HMC" else entry(package, name)
    )
    assert lacking() == {"HMC"}


def test_names_are_described_where_a_package_exports_them() -> None:
    places = {f"{package}.{name}" for package, name in public_objects()}
    assert set(described()) <= places


@pytest.mark.parametrize("package", sorted({package for package, _ in public_objects()}))
def test_names_exported_elsewhere_too_are_the_same(package: str) -> None:
    homes = reference.homes()
    for name in importlib.import_module(package).__all__:
        home = importlib.import_module(homes[name])
        assert getattr(home, name) is getattr(importlib.import_module(package), name)


def test_data_are_described() -> None:
    with pytest.raises(ValueError, match="describe it by a string"):
        reference.description_of_data("pyro_neuralrg.statistics.draws", "nothing")
    text = reference.entry("pyro_neuralrg.potentials", "CRITICAL_TEMPERATURE")
    assert "Onsager" in text


def test_pages_are_written_once_and_old_ones_removed(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    reference.write(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "old.rst").write_text("", encoding="utf-8")
    reference.write(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert set(times) == {f"{name}.rst" for name in reference.pages()}


# Pages ------------------------------------------------------------------------------------------


def toctree() -> list[str]:
    """Entries of the tables of contents of the index."""
    text = (FOLDER / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    entries = [line for line in lines if line and not line.startswith(":")]
    return [re.sub(r".*<(.+)>", r"\1", entry) for entry in entries]


def test_contents_exist_and_are_all() -> None:
    entries = toctree()
    assert len(set(entries)) == len(entries)
    sources = [*FOLDER.rglob("*.md"), *FOLDER.glob("*.ipynb")]
    found = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in sources}
    assert set(entries) == found - {"index"} | {"reference/index"}
    assert "index" in reference.pages()


def text_of(path: Path) -> str:
    """A page without its blocks of code."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """Those that headings have, made as GitHub and MyST do, and those that are set."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)
    return {*plain, *re.findall(r"^\(([\w-]+)\)=$", text, flags=re.MULTILINE)}


@every_page
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        if GENERATED in found.parents:
            assert found.stem in reference.pages(), target
            continue
        assert found.exists(), target
        assert not anchor or found.suffix != ".md" or anchor in anchors(found), target


@every_page
def test_addresses_have_a_sound_form(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for address in ADDRESS.findall(text):
        parts = urlsplit(address.rstrip(".,;"))
        assert parts.scheme == "https", address
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}", parts.netloc), address


def test_links_are_found() -> None:
    text = '[a](b.md#c), ![d](e_(f).png), [g](https://h.org) [i](#j "k")'
    assert LINK.findall(text) == ["b.md#c", "e_(f).png", "https://h.org", "#j"]


def test_messages_and_their_page_name_the_same_sections() -> None:
    """What the page says a message is, ``test_doctests.py`` compares with the message."""
    page = (FOLDER / "errors.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^\(([\w-]+)\)=$", page, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    for section, text in sections.items():
        assert set(re.findall(r"\(tutorials/errors\.md#([\w-]+)\)", text)) == {section}
    package = (ROOT / "pyro_neuralrg").rglob("*.py")
    sources = "".join(path.read_text(encoding="utf-8") for path in package)
    assert set(re.findall(r"\bsee\([\"']([\w-]+)[\"']\)", sources)) == set(sections)


# The build --------------------------------------------------------------------------------------


class BuiltPage(HTMLParser):
    """What a built page links to, what it can be linked by, and its text outside of code."""

    SKIPPED = frozenset({"code", "pre", "script", "style"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: list[str] = []
        self.without_description: list[str] = []
        self.blocks = 0
        self.prose: list[str] = []
        self._depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._depth += tag in self.SKIPPED
        self.anchors.update(filter(None, (values.get("id"), values.get("name"))))
        self.addresses.extend(filter(None, (values.get("href"), values.get("src"))))
        if tag == "img" and not values.get("alt"):
            self.without_description.append(values["src"] or "")
        self.blocks += tag == "div" and values.get("class") == "highlight"

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag in self.SKIPPED

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self.prose.append(data)


def faults_of_links(name: str, address: str, pages: dict[str, BuiltPage], site: Path) -> list[str]:
    """What is wrong with a link or a source of a built page."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        sound = parts.scheme == "https" and not re.search(r"[.,;:)\]]$", address)
        return [] if sound else [f"{name}: form of {address}"]
    target = unquote(urljoin(name, parts.path)) if parts.path else name
    anchor = unquote(parts.fragment)
    found = (site / target).is_file()
    if found and (not anchor or target not in pages or anchor in pages[target].anchors):
        return []
    return [f"{name}: nothing at {address}"]


def faults_of_site(site: Path) -> list[str]:
    """Links to nothing, pictures without a description, code without a button, stray marks."""
    files = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    pages = {name: BuiltPage(text) for name, text in texts.items()}
    faults: list[str] = []
    for name, page in pages.items():
        for address in page.addresses:
            faults += faults_of_links(name, address, pages, site)
        faults += [f"{name}: no description of {image}" for image in page.without_description]
        if page.blocks and "copybutton.js" not in texts[name]:
            faults.append(f"{name}: no copy buttons")
        if "$" in "".join(page.prose):
            faults.append(f"{name}: a formula that was not read as one")
    return faults


def test_faults_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    sound = '<p id="a">x</p><code>$</code><a href="#a"></a><a href="sub/b.html#b%20c"></a>'
    (tmp_path / "a.html").write_text(sound, encoding="utf-8")
    (tmp_path / "sub" / "b.html").write_text(
        '<p id="b c"></p><a href="../a.html#a"></a><a href="https://a.org/"></a>', encoding="utf-8"
    )
    assert not faults_of_site(tmp_path)
    (tmp_path / "sub" / "c.html").write_text(
        '<a href="a.html"></a><a href="../a.html#z"></a><a href="http://a.org"></a>'
        '<a href="https://a.org/."></a><img src="../a.html"><div class="highlight"></div>$x',
        encoding="utf-8",
    )
    assert faults_of_site(tmp_path) == [
        f"sub/c.html: {fault}"
        for fault in (
            "nothing at a.html",
            "nothing at ../a.html#z",
            "form of http://a.org",
            "form of https://a.org/.",
            "no description of ../a.html",
            "no copy buttons",
            "a formula that was not read as one",
        )
    ]


@pytest.mark.slow
def test_site_builds_without_warnings_or_faults_and_shows_every_public_name(tmp_path: Path) -> None:
    for module in ("sphinx", "myst_nb", "furo", "sphinx_copybutton"):
        pytest.importorskip(module)
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", FOLDER, tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    inventory = (tmp_path / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = [line.split() for line in zlib.decompress(inventory).decode().splitlines()]
    pages = {name: address.partition("#")[0] for name, _, _, address, *_ in entries}
    for full in described():
        assert pages[full] == f"reference/{full.rpartition('.')[0]}.html"
    assert not faults_of_site(tmp_path / "site")
