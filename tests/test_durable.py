"""Files that are there whole or not at all, whenever the process is killed and whatever the disk says."""

import errno
import os
import random
import signal
import subprocess
import time

import pytest
import torch

from lit_small_lm import durable
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.checkpoint import checkpoint_name, make_record, newest, read, write
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.durable import DamagedError, manifest_of, replace, save, sweep, verify
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.shapes import FixedShape

CALLS = ("open", "write", "fsync", "close", "replace", "unlink")


class Kill(BaseException):
    """The process is no more: no call after it does anything."""


def content(step):
    tokenizer = Bytes()
    parts = {"backbone": BackboneSpec(), "shape": FixedShape(dim=16, n_layers=1, n_heads=2), "objective": NextToken()}
    record = make_record(**parts, tokenizer=tokenizer, encoder=tokenizer.learn(iter(())), step=step)
    generator = torch.Generator().manual_seed(step)
    tensors = {f"net.{name}": torch.randn(40, 30, generator=generator) for name in "ab"}
    moments = [{"state": {0: {"exp_avg": torch.randn(1200, generator=generator)}}}]
    return {"state_dict": tensors, "optimizer_states": moments, "lit_small_lm": record}


@pytest.fixture
def run(tmp_path):
    """A run directory with good checkpoints of steps 5, 10 and 15; 5 has the newest time."""
    for step in (10, 15, 5):
        write(content(step), tmp_path / "checkpoints" / checkpoint_name(step))
    return tmp_path


def file_of(run, step):
    return run / "checkpoints" / checkpoint_name(step)


def killed_at(monkeypatch, number, act):
    """Do `act`, killed before its system call of that number; returns whether it came to that."""
    calls = iter(range(number))
    with monkeypatch.context() as patch:
        for name in CALLS:
            original = getattr(os, name)

            def call(*args, original=original, **kwargs):
                if next(calls, None) is None:
                    raise Kill
                return original(*args, **kwargs)

            patch.setattr(os, name, call)
        try:
            act()
        except Kill:
            return True
    return False


def state(path):
    """What a reader finds there: its content if that is what was written, else what is wrong."""
    if not path.exists():
        return "nothing"
    with open(path, "rb") as file:
        try:
            return file.read() if verify(path, file) == "good" else "no manifest"
        except DamagedError as error:
            return str(error)


@pytest.mark.parametrize("before", ["nothing", "good", "no manifest", "damaged manifest"])
def test_a_kill_between_any_two_system_calls_leaves_the_old_or_the_new(before, tmp_path, monkeypatch):
    path, number = tmp_path / "step=00000001.ckpt", 0
    allowed = {"nothing": ["nothing"], "good": [b"old"], "no manifest": ["no manifest", b"old"]}
    allowed = [
        *allowed.get(before, [f"its {path.name}.sha256 is damaged", f"its SHA-256 is not that of {path.name}.sha256"]),
        b"new",
    ]
    seen, killed = set(), True
    while killed:
        for file in tmp_path.iterdir():
            file.unlink()
        if before != "nothing":
            save(path, lambda stream: stream.write(b"old"))
        if before == "no manifest":
            manifest_of(path).unlink()
        if before == "damaged manifest":
            manifest_of(path).write_bytes(b"?")
        killed = killed_at(monkeypatch, number, lambda: save(path, lambda stream: stream.write(b"new")))
        found = state(path)
        assert found in allowed, (number, found)
        seen.add(found)
        sweep(tmp_path)
        assert state(path) == found, number
        assert {file.name for file in tmp_path.iterdir()} <= {path.name, manifest_of(path).name}
        number += 1
    assert number > 12 and b"new" in seen and seen & set(allowed[:-1])


def test_a_process_killed_while_it_saves_leaves_the_old_or_the_new(tmp_path):
    """In earnest, eight times: fork, save again and again, SIGKILL."""
    rng, path, big = random.Random(0), tmp_path / "step=00000001.ckpt", os.urandom(1 << 20)
    save(path, lambda stream: stream.write(big))
    for _ in range(8):
        child = os.fork()
        if child == 0:
            for number in range(10_000):
                save(path, lambda stream, number=number: [stream.write(big), stream.write(b"%d" % number)])
            os._exit(0)
        time.sleep(rng.uniform(0.01, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert isinstance(state(path), bytes)
    sweep(tmp_path)
    done = subprocess.run(["sha256sum", "-c", manifest_of(path).name], cwd=tmp_path, capture_output=True, text=True)
    assert "OK" in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {path.name, manifest_of(path).name}


@pytest.mark.parametrize("place", ["weights", "moments", "manifest's digest", "manifest's name", "manifest's end"])
def test_a_flipped_bit_is_found_and_the_checkpoint_before_it_used(place, run):
    path = file_of(run, 15)
    tensors = {
        "weights": content(15)["state_dict"]["net.b"],
        "moments": content(15)["optimizer_states"][0]["state"][0]["exp_avg"],
    }
    target = path if place in tensors else manifest_of(path)
    data = bytearray(target.read_bytes())
    at = {"manifest's digest": 3, "manifest's name": 70, "manifest's end": len(data) - 1}
    offset = at[place] if place in at else data.index(tensors[place].numpy().tobytes()) + 1001
    data[offset] ^= 1
    target.write_bytes(data)
    with pytest.warns(
        UserWarning, match=r"step=00000015.ckpt is damaged: .*sha256.*; passed over for step=00000010"
    ) as said:
        file, found = newest(run)
    assert (file, found["lit_small_lm"]["step"], len(said)) == (file_of(run, 10), 10, 1)
    with pytest.raises(RunError, match="step=00000015.ckpt is damaged"):
        read(path)


FAULTS = {
    "cut at half": (lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged"),
    "cut at 99 %": (lambda path: os.truncate(path, path.stat().st_size * 99 // 100), "is damaged"),
    "empty": (lambda path: os.truncate(path, 0), "is damaged"),
    "no manifest": (lambda path: manifest_of(path).unlink(), "has no step=00000015.ckpt.sha256"),
    "a link to nothing": (lambda path: (path.unlink(), path.symlink_to("gone")), "is a link to nothing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is no file"),
    "a pipe for a manifest": (lambda path: (manifest_of(path).unlink(), os.mkfifo(manifest_of(path))), "is damaged"),
    "the file gone": (lambda path: path.unlink(), "is not there, only its manifest"),
    "an empty manifest": (lambda path: os.truncate(manifest_of(path), 0), "is damaged"),
    "the manifest of another": (
        lambda path: os.replace(manifest_of(path.with_name(checkpoint_name(5))), manifest_of(path)), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_newest_is_passed_over_and_named(fault, run):
    damage, says = FAULTS[fault]
    damage(file_of(run, 15))
    with pytest.warns(UserWarning, match=says) as said:
        assert newest(run)[0] == file_of(run, 10)
    assert len(said) == 1 and str(said[0].message).endswith("passed over for step=00000010.ckpt")


def test_all_damaged_lists_each_and_touches_none(run):
    for step in (5, 10, 15):
        os.truncate(file_of(run, step), 1000)
    before = {file: file.read_bytes() for file in run.rglob("*.*") if file.is_file()}
    with pytest.raises(RunError) as refused:
        newest(run)
    lines = str(refused.value).splitlines()
    assert [f"step={step:08d}.ckpt is damaged" in line for step, line in zip((15, 10, 5), lines, strict=True)] == [
        True
    ] * 3
    assert {file: file.read_bytes() for file in run.rglob("*.*") if file.is_file()} == before


def test_checkpoints_of_an_earlier_version_are_used_with_a_word(run):
    for step in (5, 10, 15):
        manifest_of(file_of(run, step)).unlink()
    with pytest.warns(UserWarning, match="has no step=00000015.ckpt.sha256: an earlier version wrote it, or"):
        assert newest(run)[0] == file_of(run, 15)
    os.truncate(file_of(run, 15), 1000)
    with pytest.warns(UserWarning, match="step=00000015.ckpt is damaged"):
        assert newest(run)[0] == file_of(run, 10)


def test_the_step_counts_and_neither_time_nor_prefix(run):
    for name in ("last_known_good.ckpt", "step=99.ckpt.bak", "step=00000099.ckpt.sha256"):
        (run / "checkpoints" / name).write_bytes(b"newer")
    with pytest.warns(UserWarning, match="step=00000099.ckpt is not there"):
        assert newest(run)[0] == file_of(run, 15)


def test_a_weight_that_is_not_finite_is_neither_written_nor_read(run, monkeypatch):
    bad = content(20)
    bad["state_dict"]["net.b"][3, 4] = torch.nan
    with pytest.raises(RunError, match=r"step=00000020.ckpt is not written: weight net\.b is not finite"):
        write(bad, file_of(run, 20))
    assert not file_of(run, 20).exists()
    save(file_of(run, 20), lambda stream: torch.save(bad, stream))
    for ask in (lambda: read(file_of(run, 20)), lambda: newest(run)):
        with pytest.raises(RunError, match=r"step=00000020.ckpt: weight net\.b is not finite"):
            ask()


def test_a_link_is_read_through_and_replaced_and_its_target_never_written(run):
    target, link = file_of(run, 10), file_of(run, 20)
    before = target.read_bytes()
    link.symlink_to(target)
    assert read(link)["lit_small_lm"]["step"] == 10  # held against the target's manifest
    planted = link.with_name(f".{link.name}.new")
    planted.symlink_to(target)
    write(content(20), link)
    assert target.read_bytes() == before and not link.is_symlink() and not planted.is_symlink()
    assert read(link)["lit_small_lm"]["step"] == 20


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_disk_that_refuses_leaves_everything_as_it_was(number, call, run, monkeypatch):
    before = {file: file.read_bytes() for file in run.rglob("*.*") if file.is_file()}

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    for path in (file_of(run, 15), file_of(run, 20)):
        with pytest.raises(RunError) as refused:
            write(content(15), path)
        said = str(refused.value)
        assert path.name in said and os.strerror(number) in said and "\n" not in said
        assert " bytes needed; " in said and " bytes free; " in said
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in run.rglob("*.*") if file.is_file()} == before


def test_bytes_needed_are_those_of_the_file(tmp_path, monkeypatch):
    size = 0

    def full(number, data):
        nonlocal size
        if size > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size += len(data)
        return original(number, data)

    original = os.write
    write(content(1), tmp_path / "a" / checkpoint_name(1))
    exact = (tmp_path / "a" / checkpoint_name(1)).stat().st_size
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match=f"No space left on device; {exact:,} bytes needed"):
        write(content(1), tmp_path / "b" / checkpoint_name(1))
    assert list((tmp_path / "b").iterdir()) == []


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        replace(tmp_path / "a", b"x")
        write(content(1), tmp_path / checkpoint_name(1))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_no_temporary_folder_is_used(run, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    write(content(20), file_of(run, 20))
    assert newest(run)[0] == file_of(run, 20)


def test_nothing_there_is_an_error(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step=00000001.ckpt.new").touch()
    with pytest.raises(RequestError, match="no checkpoint in it"):
        newest(tmp_path)
    assert durable.SUFFIX == ".sha256"
