"""Clusters of tagged images: what the partition may depend on, the scores beside their null, and the command."""

import csv
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boothlab.cli import main
from boothlab.config_clusters import ClustersConfig
from boothlab.errors import UserError
from dollhouse_hotels import HOTELS, room

pytest.importorskip("kmodes", reason="kmodes is an extra: pip install 'boothlab[caption]'")

from boothlab.captioning import clusters as work
from boothlab.captioning.cluster_agreement import _Scores, agreement, scores_of, why_not
from boothlab.captioning.clusters import Partition, Settings, TagTable, cluster, elbow, read_tags, table_of
from boothlab.reporting.cluster_page import thumbnail

ROWS = st.lists(st.sets(st.sampled_from("abcdefg"), max_size=5), min_size=3, max_size=14)
FEW = Settings(restarts=2)


def rooms(photos: int = 6) -> TagTable:
    """Tags as of four hotels: their colours, and what changes from photo to photo."""
    files, groups, tags = [], [], []
    for hotel, (carpet, curtains, bed) in enumerate(HOTELS):
        for photo in range(photos):
            files.append(f"{hotel}/{photo}.jpg")
            groups.append(str(hotel))
            own = {f"{carpet} carpet", f"{curtains} curtains", f"{bed} bed", "room"}
            tags.append(own | ({"picture"} if photo % 3 else set()) | ({"lamp on"} if photo % 2 else set()))
    return table_of(files, groups, tags)


def distinct(table: TagTable) -> int:
    return len(np.unique(table.presence_NL, axis=0))


def write(path: Path, rows: Sequence[Sequence[str]], head: Sequence[str] = ("file", "group", "tags")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_hotels_are_found_again() -> None:
    table = rooms()
    found = cluster(table.presence_NL, 4, Settings())
    assert scores_of(found.labels_N, table.groups) == {"ari": 1.0, "ami": 1.0, "nmi": 1.0}
    # 6 photos a hotel: pictures on 4 of them and the lamp on 3, so 2 + 3 presences differ from each mode.
    assert (found.cost, found.used, found.k) == (4 * 5, 4, 4)
    partitions = work.each_k(table, range(2, 7), Settings())
    assert elbow(partitions) == 4
    assert work.choose_by_silhouette(partitions).k == 4
    shown = work.modes(table.presence_NL, found.labels_N)[0]
    first = {label for label, there in zip(table.labels, shown[found.labels_N[0]], strict=True) if there}
    assert first == {"red carpet", "blue curtains", "white bed", "room", "picture"}  # the lamp is on half of them


@given(ROWS, st.randoms(use_true_random=False), st.integers(2, 4))
@settings(max_examples=40)
def test_the_order_of_rows_and_the_names_of_files_change_nothing(tags: list[set[str]], random: object, k: int) -> None:
    table = table_of([str(index) for index in range(len(tags))], [""] * len(tags), tags)
    if distinct(table) < k:
        return
    order = list(range(len(tags)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = table_of([f"x{index}" for index in order], [""] * len(tags), [tags[index] for index in order])
    one, other = cluster(table.presence_NL, k, FEW), cluster(moved.presence_NL, k, FEW)
    assert other.labels_N.tolist() == one.labels_N[order].tolist()
    assert (one.cost, one.start, one.silhouette) == (other.cost, other.start, other.silhouette)


@given(ROWS, st.integers(2, 4))
@settings(max_examples=40)
def test_equal_rows_share_a_cluster_and_the_numbers_are_right(tags: list[set[str]], k: int) -> None:
    table = table_of([str(index) for index in range(len(tags))], [""] * len(tags), tags)
    if distinct(table) < k:
        return
    found = cluster(table.presence_NL, k, FEW)
    of_row: dict[bytes, set[int]] = {}
    for row, label in zip(table.presence_NL, found.labels_N.tolist(), strict=True):
        of_row.setdefault(row.tobytes(), set()).add(label)
    assert all(len(labels) == 1 for labels in of_row.values())
    sizes = np.bincount(found.labels_N, minlength=found.used)
    assert found.used <= k
    assert all(sizes[:-1] >= sizes[1:]) and sizes.min() > 0
    assert found.cost == min(found.costs.values())
    by_hand = 0
    for label in range(found.used):
        members = table.presence_NL[found.labels_N == label].astype(int)
        by_hand += sum(min(column.sum(), len(column) - column.sum()) for column in members.T)
    assert found.cost == by_hand
    if k == distinct(table):
        assert (found.cost, found.used) == (0, k)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_order_of_tags_in_a_row_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, tags: list[str], random: object
) -> None:
    folder = tmp_path_factory.mktemp("tags")
    shuffled = list(tags)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = read_tags(write(folder / "1.csv", [["a.jpg", "g", "; ".join(tags)], ["b.jpg", "g", "z"]]))
    other = read_tags(write(folder / "2.csv", [["a.jpg", "g", ";".join(shuffled)], ["b.jpg", "g", "z"]]))
    assert one.labels == other.labels == tuple(sorted({*tags, "z"}))
    assert (one.presence_NL == other.presence_NL).all()


def test_cao_has_no_chance_in_it_and_huang_is_of_the_seed(global_rng_untouched: AbstractContextManager[Any]) -> None:
    rng = np.random.default_rng(0)
    presence_NL = rng.random((40, 12)) < 0.4
    with global_rng_untouched:
        one = [cluster(presence_NL, 4, Settings(("cao",), seed=seed)) for seed in (0, 1)]
        assert one[0].labels_N.tolist() == one[1].labels_N.tolist()
        assert one[0].stability is None
        several = [cluster(presence_NL, 4, Settings(("huang",), 6, seed=seed)) for seed in (0, 0, 1)]
    assert several[0].costs == several[1].costs != several[2].costs
    assert list(several[0].costs) == [f"huang {index}" for index in range(1, 7)]
    assert several[0].stability is not None
    both = cluster(presence_NL, 4, Settings(("cao", "huang"), 6))
    assert both.cost == min(one[0].cost, several[0].cost)


def test_permuted_labels_agree_no_better_than_chance() -> None:
    table = rooms()
    found = cluster(table.presence_NL, 4, Settings())
    true = agreement(found.labels_N, table.groups, 199, seed=0)
    assert [one.score for one in true] == ["ari", "ami", "nmi"]
    assert [one.p_value for one in true] == [1 / 200] * 3
    permuted = np.random.default_rng(5).permutation(found.labels_N)
    ari, ami, nmi = agreement(permuted, table.groups, 199, seed=0)
    assert ari.value < ari.null_95
    assert min(ari.p_value, ami.p_value, nmi.p_value) > 0.05
    assert abs(ari.null_mean) < 0.02 and abs(ami.null_mean) < 0.02  # corrected for chance
    assert nmi.null_mean > 0.15  # and this one is not
    assert ami.p_value == nmi.p_value  # of the same sizes, both rise with the mutual information alone
    assert agreement(permuted, table.groups, 199, seed=0)[0] == ari
    assert agreement(permuted, table.groups, 199, seed=1)[0].null_mean != ari.null_mean


def test_scores_are_golden() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = scores_of(labels, list("aaabbb"))
    assert found["ari"] == pytest.approx(0.24242424)  # (2 - 1.2) / (4.5 - 1.2)
    assert found["nmi"] == pytest.approx(0.51580374)
    assert found["ami"] == pytest.approx(0.29879246)
    assert scores_of(labels, list("xxyyzz"))["ari"] == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc")), min_size=4, max_size=30))
@settings(max_examples=30)
def test_the_null_is_of_the_same_scores(pairs: list[tuple[int, str]]) -> None:
    labels, classes = np.array([label for label, _ in pairs]), [name for _, name in pairs]
    if why_not(classes):
        return
    _, numbers = np.unique(classes, return_inverse=True)
    found = _Scores(labels, numbers).of(numbers)
    assert found == pytest.approx(scores_of(labels, classes), abs=1e-9)


def test_the_p_value_counts_ties_and_itself() -> None:
    found = agreement(np.array([0, 1, 0, 1]), list("aabb"), 99, seed=0)[0]
    assert found.value == pytest.approx(-0.5)
    assert found.p_value == 1.0


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        (["", ""], "no classes are known: the table has no group for any image"),
        (["a", "a", ""], "all images are of one group, a"),
        (["a", "b", ""], "every image is a group of its own"),
        (["a", "b", "b"], ""),
    ],
)
def test_why_clusters_are_not_compared(groups: list[str], reason: str) -> None:
    assert why_not(groups) == reason


def partition(k: int, cost: int, silhouette: float | None = None) -> Partition:
    return Partition(k, np.zeros(1, dtype=np.int64), k, cost, "cao", {}, silhouette, None)


def test_the_bend_and_the_highest_silhouette() -> None:
    assert elbow([partition(k, cost) for k, cost in zip(range(2, 8), (100, 50, 20, 18, 16, 14), strict=True)]) == 4
    assert elbow([partition(k, 100 - 10 * k) for k in range(2, 8)]) is None  # a straight line
    assert elbow([partition(2, 10), partition(3, 5)]) is None
    assert elbow([partition(k, 10) for k in (2, 3, 4)]) is None
    tied = [partition(2, 9, 0.1), partition(3, 8, 0.5), partition(4, 7, 0.5), partition(5, 6)]
    assert work.choose_by_silhouette(tied).k == 3
    assert work.choose_by_silhouette([partition(2, 9), partition(3, 8)]).k == 2


def test_the_silhouette_by_hand() -> None:
    rows = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=np.bool_)
    # a = 1/4 of the first two, b = (1, 3/4); of the others a = 0.
    expected = ((1 - 0.25 / 1) + (1 - 0.25 / 0.75) + 1 + 1) / 4
    assert work.silhouette(rows, np.array([0, 0, 1, 1]), 0) == pytest.approx(expected)
    assert work.silhouette(rows, np.array([0, 0, 0, 0]), 0) is None
    assert work.silhouette(rows, np.array([0, 1, 2, 3]), 0) is None


def test_too_many_clusters_for_the_tags_are_refused_with_the_way_out() -> None:
    table = table_of(["a", "b", "c", "d"], [""] * 4, [{"x"}, {"x"}, {"y"}, {"x", "y"}])
    with pytest.raises(UserError, match=r"^k=4: there are only 3 different sets of tags; choose k=2\.\.3, or use more"):
        work.check_counts(table, [2, 3, 4])
    work.check_counts(table, [2, 3])
    with pytest.raises(UserError, match="all images have the same tags"):
        work.check_counts(table_of(["a", "b"], ["", ""], [{"x"}, {"x"}]), [2])
    with pytest.raises(UserError, match="all images have the same tags"):
        work.check_counts(table_of(["a", "b"], ["", ""], [set(), set()]), [2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has no column file; its columns are: none"),
        (b"file,labels\n", "has no column tags; its columns are: file, labels"),
        (b"file,tags\n", "has no images in it; tag some first"),
        (b"file,tags\na.jpg,x\na.jpg,y\n", "line 3: a.jpg was in line 2; each image has one line"),
        (b"file,tags\n,x\n", "line 2: no file is named"),
        (b"file,tags\n\xff,x\n", "is no CSV file in UTF-8"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "tags.csv"
    path.write_bytes(text)
    with pytest.raises(UserError) as found:
        read_tags(path)
    assert message in str(found.value) and str(found.value).isprintable()


@given(st.binary(max_size=120))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "tags.csv"
    path.write_bytes(b"file,group,tags\n" + data)
    try:
        table = read_tags(path)
    except UserError as error:
        assert str(error).isprintable()
    else:
        assert table.presence_NL.shape == (len(table.files), len(table.labels))
        assert len(set(table.files)) == len(table.files) == len(table.groups)


@pytest.mark.parametrize(
    ("text", "counts"),
    [("2..5", [2, 3, 4, 5]), ("4", [4]), ("8,2,4,2", [2, 4, 8]), ("[3,2]", [2, 3]), ("2 .. 3", [2, 3])],
)
def test_numbers_of_clusters(text: str, counts: list[int]) -> None:
    assert ClustersConfig(tags="t", k=text).counts == counts


@pytest.mark.parametrize("text", ["", "1", "1..3", "5..2", "2..201", "2..9999", "two", "2...4", "-3", "2,,3", "0"])
def test_numbers_of_clusters_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="must be numbers of clusters from 2 to 200"):
        ClustersConfig(tags="t", k=text)


def test_a_run_or_a_table_and_not_both() -> None:
    for values in ({}, {"run": "a", "tags": "b"}):
        with pytest.raises(UserError, match="give the folder of a captioning run as run="):
            ClustersConfig(**values)


def test_pictures_from_outside_of_the_folder_stay_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    room(HOTELS[0], 0, 32).save(tmp_path / "outside.png")
    room(HOTELS[0], 0, 32).save(tmp_path / "images" / "in.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    assert thumbnail(tmp_path / "images", "in.png").startswith("data:image/webp;base64,")
    for file in ("../outside.png", "link.png", str(tmp_path / "outside.png"), "none.png", "a\0b"):
        assert thumbnail(tmp_path / "images", file) == ""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def tagged_folder(folder: Path) -> Path:
    """Images of four hotels with a table of their tags, as a captioning run leaves it; one name needs escaping."""
    table = rooms(4)
    rows = []
    for index, (file, group) in enumerate(zip(table.files, table.groups, strict=True)):
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        room(HOTELS[int(group)], index % 4, 32).save(folder / "images" / file)
        tags = [label for label, there in zip(table.labels, table.presence_NL[index], strict=True) if there]
        rows.append([file, f"<b>hotel</b> {group}", "; ".join(tags).replace("room", "<script>room</script>")])
    rows.append(["'-1/lost.jpg", "", "lamp on; =sum(1)"])
    (folder / "run").mkdir()
    write(folder / "run" / "tags.csv", rows)
    manifest = json.dumps({"config": {"images": str(folder / "images")}})
    (folder / "run" / "manifest.json").write_text(manifest, encoding="utf-8")
    return folder / "run"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tagged_folder(tmp_path)
    words = ["clusters", f"run={run}", "k=2..5", "restarts=2", "permutations=49", "gallery=3"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "17 images, " in said and "has the highest silhouette, of 2..5." in said
    assert "ARI" in said and "[" not in said.split("cluster ")[0]
    summary = json.loads((run / "clusters" / "summary.json").read_text(encoding="utf-8"))
    assert [one["k"] for one in summary["curve"]] == [2, 3, 4, 5]
    assert summary["compared"] == {"images": 16, "classes": 4, "why_not": ""}
    assert summary["agreement"][0]["p_value"] == 1 / 50
    assert sum(map(sum, summary["confusion"]["counts"])) == 16
    rows = list(csv.reader((run / "clusters" / "clusters.csv").open(encoding="utf-8")))
    assert rows[0] == ["file", "cluster"]
    assert len(rows) == 18
    assert rows[-1][0] == "'-1/lost.jpg"
    page = (run / "clusters" / "clusters.html").read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(page)
    assert parsed.tags.count("script") == 3 and "b" in parsed.tags
    assert page.count("<script>room") == 0 and "&lt;script&gt;room&lt;/script&gt; carpet" not in page
    assert "&lt;b&gt;hotel&lt;/b&gt; 0" in page
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in parsed.links)
    pictures = [link for link in parsed.links if link.startswith("data:")]
    assert 0 < len(pictures) <= 3 * summary["chosen"]["used"]
    before = {path: path.read_bytes() for path in (run / "clusters").iterdir()}
    assert main(words) == 0
    assert {path: path.read_bytes() for path in (run / "clusters").iterdir()} == before


def test_the_command_speaks_of_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "t.csv", [["a", "x"], ["b", "y"], ["c", "x; y"]], ("file", "tags"))
    for words, message in (
        ([f"run={tmp_path}"], "has no tags.csv; caption with method=clip_tags, or give tags=FILE"),
        ([f"tags={table}", "k=9"], "k=9: there are only 3 different sets of tags; choose k=2..3, or use more labels"),
        ([f"tags={table}", "images=nowhere"], "images=nowhere: there is no such folder"),
        ([f"tags={tmp_path / 'none.csv'}"], "cannot be read (No such file or directory); check the path"),
        (["k=3"], "give the folder of a captioning run as run="),
    ):
        assert main(["clusters", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "clusters").exists()
    assert main(["clusters", f"tags={table}", "k=2", f"out={tmp_path / 'o'}", "start=cao"]) == 0
    assert "not held against known groups: no classes are known" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["clusters.csv", "clusters.html", "summary.json"]
