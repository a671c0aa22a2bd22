"""Zip archives that are damaged, ambiguous or hostile, made by hand."""

import dataclasses
import random
import struct

import numpy as np
import pytest
from reading import opened, read, refused, write
from torch_writer import Record, array_tensor, torch_records, torch_zip, zip_bytes

from sam_jax.convert.reader import open_checkpoint
from sam_jax.errors import CheckpointError

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
VALUE = {"a": array_tensor(ARRAY, "0")}
STORAGES = {"0": ARRAY.tobytes()}


def changed(name: str, **changes) -> list[Record]:
    """Return the records of a good archive, with one of them changed."""
    records = torch_records(VALUE, STORAGES)
    return [dataclasses.replace(record, **changes) if record.name == name else record for record in records]


def test_records_as_pytorch_writes_them_are_views_of_the_file(tmp_path):
    tensors = read(tmp_path, torch_zip(VALUE, STORAGES))
    np.testing.assert_array_equal(tensors["a"], ARRAY)
    assert not tensors["a"].flags.owndata
    assert not tensors["a"].flags.writeable
    with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
        tensors["a"].flags.writeable = True


@pytest.mark.parametrize(
    "content",
    [
        zip_bytes(torch_records(VALUE, STORAGES, wide=True)),
        zip_bytes(torch_records(VALUE, STORAGES), wide_end=False),
        zip_bytes(torch_records(VALUE, STORAGES, flags=0)),
        zip_bytes(torch_records(VALUE, STORAGES, method=8)),
        zip_bytes(torch_records(VALUE, STORAGES, method=8, flags=0x0802)),
        zip_bytes([Record("archive/", b""), *torch_records(VALUE, STORAGES)]),
    ],
    ids=["64-bit fields", "32-bit end", "sizes first", "deflated", "deflated, sizes first", "folder entries"],
)
def test_other_ways_to_write_the_same_archive(tmp_path, content):
    np.testing.assert_array_equal(read(tmp_path, content)["a"], ARRAY)
    assert opened(tmp_path, content).notes == ()


def test_a_flipped_bit_in_a_tensor_is_found_when_it_is_read(tmp_path):
    content = bytearray(torch_zip(VALUE, STORAGES))
    content[content.index(ARRAY.tobytes()) + 5] ^= 1
    checkpoint = open_checkpoint(write(tmp_path, bytes(content)))  # opening reads no tensor
    with pytest.raises(CheckpointError, match=r"some\.pth: Record 'archive/data/0' is damaged: its CRC-32 is"):
        checkpoint.tensors["a"].read()


def test_a_flipped_bit_in_the_pickle_is_found(tmp_path):
    content = torch_zip(VALUE, STORAGES).replace(b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00b")
    assert "Record 'archive/data.pkl' is damaged" in refused(tmp_path, content)


def test_a_crc_that_was_not_computed_is_noted(tmp_path):
    content = zip_bytes(torch_records(VALUE, STORAGES, crc=0))
    np.testing.assert_array_equal(read(tmp_path, content)["a"], ARRAY)
    assert opened(tmp_path, content).notes == (
        "2 records were saved without a CRC-32, so that damage would go unnoticed.",
    )


def test_a_repeated_record_is_refused(tmp_path):
    records = torch_records(VALUE, STORAGES)
    assert "two records named 'archive/data/0'" in refused(tmp_path, zip_bytes([*records, records[-1]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_name": "archive/data/1"}, "'archive/data/0' has another name or method in its own header"),
        ({"flags": 0, "local_size": 25}, "'archive/data/0' has another size or CRC-32 in its own header"),
        ({"flags": 0x0809}, "'archive/data/0' is encrypted"),
        ({"flags": 0x0828}, "'archive/data/0' has the unknown flags 0x0828"),
        ({"method": 14}, "'archive/data/0' is compressed with LZMA"),
        ({"method": 77}, "'archive/data/0' is compressed with method 77"),
        ({"extra": struct.pack("<2H", 0x7075, 0)}, "extra fields"),
        ({"extra": struct.pack("<2H", 1, 0) * 2}, "extra fields"),
        ({"extra": struct.pack("<2H", 5, 9)}, "extra fields"),
        ({"size": 1 << 20}, "'archive/data/0' overlaps what follows it"),
        ({"size": 0xFFFFFFFF}, "lacks the 64-bit fields"),
    ],
)
def test_a_record_with_two_readings_is_refused(tmp_path, changes, words):
    assert words in refused(tmp_path, zip_bytes(changed("archive/data/0", **changes)))


def test_damaged_deflate_is_refused(tmp_path):
    content = bytearray(torch_zip(VALUE, STORAGES, method=8))
    stop = content.index(b"PK\x07\x08", content.index(b"archive/data/0"))
    content[stop - 10 : stop] = b"\xff" * 10
    assert "Record 'archive/data/0' is damaged: Error -3" in refused(tmp_path, bytes(content))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (20, "is stored, and yet has two sizes"),  # the packed size
        (30, "is cut within an entry"),  # the extra fields' length
        (0, "a header b'PK\\x01\\x02' is missing"),  # the signature
    ],
)
def test_a_damaged_directory_entry_is_refused(tmp_path, place, words):
    content = bytearray(zip_bytes(torch_records(VALUE, STORAGES)))
    content[content.rindex(b"PK\x01\x02") + place] ^= 8
    assert words in refused(tmp_path, bytes(content))


def test_a_comment_that_is_cut_is_refused(tmp_path):
    content = bytearray(zip_bytes(torch_records(VALUE, STORAGES)))
    content[-2] = 5
    assert "its end record is cut" in refused(tmp_path, bytes(content))
    assert opened(tmp_path, bytes(content) + b"words").notes == ()


@pytest.mark.parametrize("root", ["../../evil", "/archive", "a\\b", "a/../b", ".", "a\x1b[31m", ""])
def test_a_record_name_that_is_no_plain_path_is_refused(tmp_path, root):
    assert "no plain relative path" in refused(tmp_path, torch_zip(VALUE, STORAGES, root=root))


def test_a_second_root_is_refused(tmp_path):
    decoy = torch_records(VALUE, STORAGES, root="other")
    message = refused(tmp_path, zip_bytes([*torch_records(VALUE, STORAGES), *decoy]))
    assert "records outside of its folder 'archive': 'other/data.pkl'" in message


def test_a_record_beside_the_root_is_refused(tmp_path):
    message = refused(tmp_path, zip_bytes([*torch_records(VALUE, STORAGES), Record("readme.txt", b"hello")]))
    assert "records outside of its folder 'archive': 'readme.txt'" in message


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    zeros = bytes(1 << 26)
    pickle_bomb = torch_zip(b"\x80\x02" + zeros, {}, method=8)
    assert len(pickle_bomb) < 1 << 19
    assert "The pickle of 67108866 bytes is longer than" in refused(tmp_path, pickle_bomb)
    value = {"a": array_tensor(np.zeros(1, np.uint8), "0")}
    storage_bomb = torch_zip(value, {"0": zeros, "1": zeros}, method=8)
    assert "a decompression bomb" in refused(tmp_path, storage_bomb)


@pytest.mark.parametrize("truth", [1023, 1025, 1 << 26])
def test_a_record_that_unpacks_to_another_size_than_it_declares_is_refused(tmp_path, truth):
    value = {"a": array_tensor(np.zeros(1024, np.uint8), "0")}
    records = torch_records(value, {"0": bytes(truth)})
    records = [dataclasses.replace(r, method=8, size=1024) if r.name.endswith("/0") else r for r in records]
    assert "'archive/data/0' does not unpack to the 1024 bytes" in refused(tmp_path, zip_bytes(records))


def test_bytes_before_the_archive_are_refused(tmp_path):
    assert "This is no PyTorch checkpoint" in refused(tmp_path, zip_bytes(torch_records(VALUE, STORAGES), before=b"MZ"))
    polyglot = zip_bytes(torch_records(VALUE, STORAGES), before=b"PK\x03\x04" + bytes(26))
    assert "bytes before its first record" in refused(tmp_path, polyglot)


def test_bytes_after_the_archive_are_noted(tmp_path):
    content = zip_bytes(torch_records(VALUE, STORAGES), after=b"x" * 100)
    np.testing.assert_array_equal(read(tmp_path, content)["a"], ARRAY)
    assert opened(tmp_path, content).notes == ("100 bytes after the zip archive were ignored.",)


def test_every_truncation_is_refused(tmp_path):
    content = torch_zip(VALUE, STORAGES)
    for size in {len(content) // 2, len(content) - 1, *random.Random(0).sample(range(4, len(content)), 50)}:
        assert "truncated" in refused(tmp_path, content[:size])
    assert refused(tmp_path, content[:3]).startswith("This is no PyTorch checkpoint")


@pytest.mark.parametrize("offset", [1, -1, 1 << 31])
def test_a_wrong_place_of_the_directory_is_refused(tmp_path, offset):
    content = bytearray(zip_bytes(torch_records(VALUE, STORAGES), wide_end=False))
    (start,) = struct.unpack_from("<L", content, len(content) - 6)
    struct.pack_into("<L", content, len(content) - 6, start + offset)
    assert "truncated or damaged: its directory" in refused(tmp_path, bytes(content))


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([-18], "one part of several"),  # this disk's number
        ([-14, -12], "32-bit and 64-bit end records disagree"),  # the number of entries
        ([-42 + 8], "64-bit end record is not in its place"),  # where the locator says that it is
        ([-42 - 56 + 4], "64-bit end record is not in its place"),  # how long it says that it is
        ([-42 - 56 + 16], "one part of several"),  # this disk's number
        ([-42 - 8], "32-bit and 64-bit end records disagree"),  # where the directory is
    ],
)
def test_end_records_that_disagree_are_refused(tmp_path, places, words):
    content = bytearray(torch_zip(VALUE, STORAGES))
    for place in places:
        content[place] ^= 1
    assert words in refused(tmp_path, bytes(content))


def test_a_wrong_number_of_entries_is_refused(tmp_path):
    content = bytearray(zip_bytes(torch_records(VALUE, STORAGES), wide_end=False))
    content[-14] += 1
    content[-12] += 1
    assert "has 4 entries and should have 5" in refused(tmp_path, bytes(content))


def test_overlapping_records_are_refused(tmp_path):
    content = bytearray(zip_bytes(torch_records(VALUE, STORAGES)))
    first = content.index(b"PK\x01\x02")
    last = content.rindex(b"PK\x01\x02")
    content[last + 42 : last + 46] = content[first + 42 : first + 46]
    assert "overlaps what follows it" in refused(tmp_path, bytes(content))


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    content = torch_zip(VALUE, STORAGES, root="archivE").replace(b"archivE", b"archiv\xff")
    assert "is not UTF-8" in refused(tmp_path, content)


def test_too_many_entries_are_refused_before_they_are_read(tmp_path):
    content = bytearray(torch_zip(VALUE, STORAGES))
    struct.pack_into("<2H", content, len(content) - 14, 0xFFFF, 0xFFFF)
    struct.pack_into("<2Q", content, len(content) - 42 - 32, 200_000, 200_000)
    assert "has 200000 entries" in refused(tmp_path, bytes(content))


def test_an_archive_that_holds_a_checkpoint_says_so(tmp_path):
    content = zip_bytes([Record("weights/sam_vits.pt", torch_zip(VALUE, STORAGES), flags=0, method=8)])
    assert "a zip archive that holds 'weights/sam_vits.pt': unpack it" in refused(tmp_path, content)


def test_other_archives_are_refused(tmp_path):
    assert "holds no data.pkl" in refused(tmp_path, zip_bytes([Record("word/document.xml", b"<w>")]))
    script = [*torch_records(VALUE, STORAGES), Record("archive/constants.pkl", b"\x80\x02).")]
    assert "a TorchScript program" in refused(tmp_path, zip_bytes(script))
    assert "an empty zip archive" in refused(tmp_path, zip_bytes([], wide_end=False))
