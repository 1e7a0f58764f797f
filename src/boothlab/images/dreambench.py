"""The DreamBooth data set as published: subjects with their photos, classes, prompts and credits, read and checked."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import boothlab
from boothlab.errors import UserError
from boothlab.files import is_clutter, shown

PREFIX = "dreambench:"
"""`dreambench:dog` is a subject that ships with the package, `dreambench:CHECKOUT/candle` one of a checkout."""
DATASET, PROMPTS, REFERENCES = "dataset", "prompts_and_classes.txt", "references_and_licenses.txt"
LIVE_CLASSES = frozenset({"cat", "dog"})
"""The classes of the paper's 9 live subjects; the other 21 are objects. The file does not say so."""
PROMPTS_IN_A_LIST = 25
_PROMPT = re.compile(r"""(['"])(?P<text>.*)\1\.format\(unique_token, ?class_token\),?""")
_LISTS = {"Object Prompts": "object", "Live Subject Prompts": "live"}
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_LARGEST = 1 << 20


@dataclass(frozen=True)
class DreamBench:
    """The table and the prompt lists. `folder` holds a folder for each subject; some may be missing.

    `classes` maps a subject to its class noun, in the order of the file; prompts have {token} and {class} in them.
    """

    folder: Path
    classes: dict[str, str]
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]

    def is_live(self, subject: str) -> bool:
        """Whether the subject is a pet: those have a prompt list of their own."""
        return self.classes[subject] in LIVE_CLASSES

    def prompts_of(self, subject: str) -> tuple[str, ...]:
        """The 25 prompts of a subject, with {token} and {class} in them."""
        return self.live_prompts if self.is_live(subject) else self.object_prompts

    @property
    def present(self) -> list[str]:
        """The subjects whose photos are there, in the order of the table."""
        return [name for name in self.classes if _holds_files(self.folder / name)]


@dataclass(frozen=True)
class BenchSubject:
    """One subject: its name, the folder of its photos, its class noun, and its prompts."""

    name: str
    folder: Path
    class_noun: str
    live: bool
    prompts: tuple[str, ...]


def shipped_root() -> Path:
    """The part of the data set that ships with the package: three subjects, in the published layout."""
    return Path(boothlab.__file__).parent / "images" / "dreambench_data"


def subject_of(images: str) -> BenchSubject | None:
    """The subject that `dreambench:NAME` or `dreambench:CHECKOUT/NAME` means; None for any other text (a folder).

    Raises UserError for a subject that the table does not have, or whose photos are not there.
    """
    if not images.startswith(PREFIX):
        return None
    root, slash, name = images.removeprefix(PREFIX).replace("\\", "/").rpartition("/")
    bench = read_dreambench(Path(root or slash).expanduser() if slash else shipped_root())
    if name not in bench.present:
        known = ", ".join(bench.present) or "none"
        more = "" if slash else f", or write {PREFIX}CHECKOUT/NAME for a subject of your copy of the data set"
        raise UserError(f"{shown(images)}: there are no photos of such a subject; there are {known}{more}")
    live = bench.is_live(name)
    return BenchSubject(name, bench.folder / name, bench.classes[name], live, bench.prompts_of(name))


def images_of(root: Path | None) -> list[str]:
    """What `subject.images` is for each subject whose photos are there; None means those that ship with the package.

    Raises UserError if there are none.
    """
    bench = read_dreambench(root.expanduser() if root else shipped_root())
    if not bench.present:
        raise UserError(f"{shown(bench.folder)}: has no folder of photos for any subject of {PROMPTS}")
    return [f"{PREFIX}{name}" if root is None else f"{PREFIX}{root.as_posix()}/{name}" for name in bench.present]


def read_dreambench(root: Path) -> DreamBench:
    """A checkout of the data set: the folder with `prompts_and_classes.txt`, or the one above it.

    Raises UserError naming the file and the line of whatever is not as published.
    """
    folders = (root / DATASET, root)
    folder = next((one for one in folders if (one / PROMPTS).is_file()), None)
    if folder is None:
        raise UserError(f"{shown(root)}: holds no {PROMPTS}; give a checkout of the DreamBooth data set")
    status = (folder / PROMPTS).stat()
    return _read(folder, status.st_mtime_ns, status.st_size)


@cache
def _read(folder: Path, changed_ns: int, size: int) -> DreamBench:
    """Read once: a sweep's configs ask for every subject several times. The numbers tell a changed file."""
    path = folder / PROMPTS
    return parse_dreambench(_text(path), folder, shown(path))


def parse_dreambench(text: str, folder: Path, where: str) -> DreamBench:
    """The content of prompts_and_classes.txt. Raises UserError that begins with `where` and the number of the line."""
    lines = [line.strip() for line in text.splitlines()]
    classes = _classes(lines, where)
    prompts = {kind: _prompts(lines, heading, where) for heading, kind in _LISTS.items()}
    return DreamBench(folder, classes, prompts["object"], prompts["live"])


def read_references(path: Path, subjects: Collection[str]) -> dict[str, str]:
    """Subject → who took its photos and where they are from, as in references_and_licenses.txt, its lines joined.

    Raises UserError if the file cannot be read, or credits a subject twice or some of `subjects` not at all.
    """
    credits: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate(map(str.strip, _text(path).splitlines()), start=1):
        if line == "Licenses":
            break
        name, colon, rest = line.partition(":")
        if colon and name in subjects:
            if name in credits:
                raise UserError(f"{shown(path)} line {number}: the subject {name} is there twice; remove one")
            current = credits[name] = []
            line = rest.strip()
        if current is not None and line:
            current.append(line)
    if missing := [name for name in subjects if not credits.get(name)]:
        raise UserError(f"{shown(path)}: credits nobody for {missing[0]}; a line such as '{missing[0]}: …' is expected")
    return {name: "; ".join(lines) for name, lines in credits.items()}


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{shown(path)}: is larger than 1 MiB; it is not the published file")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: is not UTF-8 text; copy the published file again") from error
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror or error})") from error


def _classes(lines: list[str], where: str) -> dict[str, str]:
    header = _line_of(lines, "subject_name,class", where)
    found: dict[str, str] = {}
    for number, line in _block(lines, header):
        name, comma, noun = (part.strip() for part in line.partition(","))
        if not comma or not _NAME.fullmatch(name) or not noun or "," in noun:
            raise UserError(f"{where} line {number}: {shown(line)!r} is not `subject,class`, as in dog2,dog")
        if name in found:
            raise UserError(f"{where} line {number}: the subject {name} is there twice; remove one")
        found[name] = noun
    if not found:
        raise UserError(f"{where} line {header}: no subject follows; lines such as dog2,dog are expected")
    return found


def _prompts(lines: list[str], heading: str, where: str) -> tuple[str, ...]:
    start = _line_of(lines, heading, where)
    opening = next((number for number, line in _after(lines, start) if line), start)
    if lines[opening - 1] != "prompt_list = [":
        raise UserError(f"{where} line {opening}: `prompt_list = [` is expected after {heading!r}")
    found: list[str] = []
    for number, line in _after(lines, opening):
        if line == "]":
            if len(found) != PROMPTS_IN_A_LIST:
                raise UserError(f"{where} line {number}: {heading!r} has {len(found)} prompts, not {PROMPTS_IN_A_LIST}")
            return tuple(found)
        found.append(_prompt(line, f"{where} line {number}"))
        if found[-1] in found[:-1]:
            raise UserError(f"{where} line {number}: the prompt is there twice; remove one")
    raise UserError(f"{where} line {opening}: this list has no end; a line with ] is expected")


def _prompt(line: str, place: str) -> str:
    match = _PROMPT.fullmatch(line)
    text = match["text"] if match else ""
    pieces = re.split(r"(\{0\}|\{1\})", text)
    if sorted(pieces[1::2]) != ["{0}", "{1}"] or any(set("{}") & set(piece) for piece in pieces[::2]):
        raise UserError(f"{place}: {shown(line)!r} is not a prompt such as 'a {{0}} {{1}} …'.format(unique_token, …)")
    return text.replace("{0}", "{token}").replace("{1}", "{class}")


def _line_of(lines: list[str], heading: str, where: str) -> int:
    """The number, from 1, of the only line that says so."""
    numbers = [number for number, line in enumerate(lines, start=1) if line == heading]
    if len(numbers) > 1:
        raise UserError(f"{where} line {numbers[1]}: {heading!r} is there twice; remove one")
    if not numbers:
        raise UserError(f"{where}: no line says {heading!r}; it is not the published file")
    return numbers[0]


def _after(lines: list[str], number: int) -> Iterator[tuple[int, str]]:
    """The lines after a line, each with its number from 1."""
    yield from enumerate(lines[number:], start=number + 1)


def _block(lines: list[str], number: int) -> Iterator[tuple[int, str]]:
    """The lines after a line, up to an empty one."""
    for place, line in _after(lines, number):
        if not line:
            return
        yield place, line


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() and not is_clutter(path.name) for path in folder.iterdir())
