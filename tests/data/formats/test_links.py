"""Images that are links, as in a snapshot of a hub: refused by default, and readable where the user says so."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.data.dropped_samples import Reason
from janus_jax.data.formats.registry import open_dataset
from janus_jax.errors import UserError
from tests.helpers.source_files import image, read_all, turns

PNG = image()


@pytest.fixture
def hub(tmp_path):
    """A snapshot whose files are links to blobs outside of it, and one link to elsewhere."""
    for folder in ("blobs", "elsewhere", "snapshot/n01"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "blobs" / "abc").write_bytes(PNG)
    (tmp_path / "elsewhere" / "secret").write_bytes(PNG)
    snapshot = tmp_path / "snapshot"
    (snapshot / "0.png").symlink_to("../blobs/abc")
    (snapshot / "1.png").symlink_to("../elsewhere/secret")
    (snapshot / "n01" / "0.png").symlink_to("../../blobs/abc")
    (snapshot / "n01" / "1.png").symlink_to("../../elsewhere/secret")
    (tmp_path / "names.txt").write_text("n01 tench\nblobs x\n")
    return tmp_path


def llava(hub, follow):
    samples = [{"image": f"{i}.png", "conversations": turns("<image>", "a")} for i in range(2)]
    (hub / "a.json").write_text(json.dumps(samples))
    roots = (str(hub / "snapshot"), f"blobs={hub / 'blobs'}")
    return open_dataset("llava", str(hub / "a.json"), {"image_root": roots, **follow})


def text(hub, follow):
    samples = [{"images": [f"{i}.png"], "messages": turns("<image>", "a")} for i in range(2)]
    (hub / "a.jsonl").write_text("\n".join(map(json.dumps, samples)))
    roots = (str(hub / "snapshot"), f"blobs={hub / 'blobs'}")
    return open_dataset("text", str(hub / "a.jsonl"), {"image_root": roots, **follow})


def parquet(hub, follow):
    table = pa.table({"image": ["0.png", "1.png"], "caption": ["a", "b"]})
    pq.write_table(table, hub / "a.parquet")
    roots = (str(hub / "snapshot"), f"blobs={hub / 'blobs'}")
    return open_dataset("parquet", str(hub / "a.parquet"), {"image_root": roots, **follow})


def imagenet(hub, follow):
    (hub / "root" / "blobs").mkdir(parents=True)
    (hub / "root" / "n01").symlink_to(hub / "snapshot" / "n01")
    options = {"class_names": str(hub / "names.txt"), **follow}
    return open_dataset("imagenet", [str(hub / "root"), str(hub / "blobs")], options)


@pytest.mark.parametrize("source", [llava, text, parquet, imagenet])
@pytest.mark.parametrize(("follow", "count"), [(None, 0), ("inside", 0), ("roots", 1), ("anywhere", 2)])
def test_links_are_followed_as_far_as_the_user_says(hub, source, follow, count):
    records, bad = read_all(source(hub, {"follow_links": follow} if follow else {}))
    bad = [item for item in bad if item.reason is not Reason.UNREAD_FILE]  # the blob, for ImageNet
    assert [record.images for record in records] == [(PNG,)] * count
    assert [item.reason for item in bad] == [Reason.PATH_ESCAPE] * (2 - count)
    assert all("--follow_links=anywhere" in item.detail for item in bad)


def test_a_path_may_not_leave_its_root_however_links_are_followed(hub):
    samples = [{"image": path, "conversations": turns("<image>", "a")} for path in ("../blobs/abc", "/etc/passwd")]
    (hub / "a.json").write_text(json.dumps(samples))
    options = {"image_root": (str(hub / "snapshot"),), "follow_links": "anywhere"}
    assert [item.reason for item in read_all(open_dataset("llava", str(hub / "a.json"), options))[1]] == [
        Reason.PATH_ESCAPE
    ] * 2


@pytest.mark.parametrize("source", [llava, imagenet])
def test_another_value_is_refused(hub, source):
    with pytest.raises(UserError, match=r"^--follow_links=yes: expected one of inside, roots, anywhere"):
        source(hub, {"follow_links": "yes"})
