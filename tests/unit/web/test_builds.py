"""Folders of builds: found, told apart, never left."""

import json
import os

import pytest

from modelmill.web import builds
from modelmill.web.builds import Builds


@pytest.fixture(autouse=True)
def always_look(monkeypatch):
    monkeypatch.setattr(builds, "FRESH_S", 0.0)


def test_the_folder_may_be_a_build_itself(folders):
    (one,) = Builds([folders / "deep" / "er" / "one"]).all().builds
    assert one.id == "b0" * 8 and one.has_page


def test_what_comes_later_is_found_and_what_goes_is_not(tmp_path, folders):
    shown = Builds([tmp_path])
    assert shown.all().builds == ()
    report = (folders / "two" / "report.json").read_text()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "report.json").write_text(report)
    (build,) = shown.all().builds
    assert shown.find(build.id) == build and shown.find("other") is None
    (tmp_path / "new" / "report.json").unlink()
    assert shown.find(build.id) is None


def test_the_same_build_twice_has_two_addresses(tmp_path, folders):
    report = (folders / "two" / "report.json").read_text()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report)
        (tmp_path / name / "manifest.json").write_text(json.dumps({"build": "ab" * 8}))
        os.utime(tmp_path / name / "report.json", (1000, 1000 if name == "a" else 2000))
    first, second = Builds([tmp_path]).all().builds
    assert (first.id, first.folder.name) == ("ab" * 8, "b")
    assert second.id.startswith(f"{'ab' * 8}-") and second.folder.name == "a"


def test_links_lead_nowhere(tmp_path, folders):
    """A report that is a link to another file is not shown, and no linked folder is looked into."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.html").write_text("secret")
    (root / "own").mkdir()
    (root / "own" / "report.json").write_text((folders / "two" / "report.json").read_text())
    (root / "own" / "report.html").symlink_to(tmp_path / "secret.html")
    (root / "away").symlink_to(folders)
    (build,) = Builds([root]).all().builds
    assert build.folder.name == "own" and build.page() is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '"x"', "[" * 100_000, '{"model": 1}', '{"model": {"name": 1}}',
        '{"model": {"name": "m", "fingerprint": "f"}, "task": "t", "metric": "x", "accepted": true,'
        ' "float": {"score": NaN, "n": 1}, "deployments": [], "findings": []}',
        '{"model": {"name": "m", "fingerprint": "f"}, "task": "t", "metric": "x", "accepted": true,'
        ' "float": {"score": 1, "n": 1e400}, "deployments": [], "findings": []}',
        '{"model": {"name": "m", "fingerprint": "f"}, "task": "t", "metric": "x", "accepted": true,'
        ' "float": {"score": 1, "n": 1}, "deployments": [{}], "findings": []}',
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_report_is_listed_with_the_reason(tmp_path, text):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "report.json").write_text(text)
    found = Builds([tmp_path]).all()
    assert found.builds == ()
    ((folder, why),) = found.broken
    assert folder == "odd" and why


def test_an_odd_manifest_names_no_build(tmp_path, folders):
    for content in ('{"build": "../../etc"}', '{"build": 7}', "{", "[]"):
        (tmp_path / "report.json").write_text((folders / "two" / "report.json").read_text())
        (tmp_path / "manifest.json").write_text(content)
        (build,) = Builds([tmp_path]).all().builds
        assert len(build.id) == 16 and build.id.isalnum()


def test_only_so_many_folders_and_so_deep(tmp_path, folders, monkeypatch):
    report = (folders / "two" / "report.json").read_text()
    for place in ("a/b/c/d", "a/b/c/d/e", ".hidden", "x/cache"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "report.json").write_text(report)
    assert [b.folder.name for b in Builds([tmp_path]).all().builds] == ["d"]
    monkeypatch.setattr(builds, "FOLDERS", 2)
    assert Builds([tmp_path]).all().builds == ()


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="no such folder; name one that holds"):
        Builds([tmp_path / "none"])
