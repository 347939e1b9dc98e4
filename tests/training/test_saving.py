"""A run and its disk: saving beside training, full disks, two runs in one directory, odd places, a clock set back."""

import errno
import fcntl
import json
import os
import resource
import threading
import time

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, read, step_of
from lit_small_lm.durable import manifest_of
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.training import run_lock, saving
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.run_dir import cut_metrics
from lit_small_lm.training.saving import AtomicCheckpointIO, copied

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tree(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def steps(run_dir):
    return [step_of(file) for file in checkpoints_in(run_dir)]


@pytest.fixture
def said(capsys):
    """`said()` is what a command has written to standard error, line by line."""
    return lambda: capsys.readouterr().err.splitlines()


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory):
    """A run that was killed after step 7 of 12, with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("half") / "run"
    original = Checkpoints.on_train_batch_end

    class Crash(BaseException):
        pass

    def dying(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == 7:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", dying)
        with pytest.raises(Crash):
            main(["fit", *tiny, "--run_dir", str(folder)])
    assert steps(folder) == [6, 3]
    return folder


@pytest.fixture
def run(half, tmp_path):
    """A copy of it."""
    for file, data in tree(half).items():
        copy = tmp_path / "run" / file.relative_to(half)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    return tmp_path / "run"


# ---------------------------------------------------------------------------------------------------- beside training
@pytest.fixture
def slow(monkeypatch):
    """Writing waits until it is let go."""
    go, original = threading.Event(), saving.write
    monkeypatch.setattr(saving, "write", lambda *args: (go.wait(30), original(*args)))
    return go


def state_of(value):
    weight = torch.full((4, 3), value)
    return {"state_dict": {"net.a": weight, "net.b": weight.view(3, 4), "net.c": weight}, "x": [{"y": (weight[0], 1)}]}


def test_what_is_written_is_the_state_at_the_save(tmp_path, slow):
    io, state = AtomicCheckpointIO("background"), state_of(1.0)
    io.save_checkpoint(state, tmp_path / "a.ckpt")
    assert io.busy() and not (tmp_path / "a.ckpt").exists()
    state["state_dict"]["net.a"].fill_(2.0)
    state["x"][0]["y"] = None
    slow.set()
    io.wait()
    found = read(tmp_path / "a.ckpt")
    assert all((tensor == 1).all() for tensor in found["state_dict"].values())
    assert found["x"][0]["y"][1] == 1 and not io.busy()
    io.saving = "blocking"
    io.save_checkpoint(state_of(1.0), tmp_path / "b.ckpt")
    again = read(tmp_path / "b.ckpt")["state_dict"]
    assert all(torch.equal(found["state_dict"][name], value) for name, value in again.items())


def test_one_tensor_in_two_places_is_copied_once():
    state = copied(state_of(1.0))["state_dict"]
    assert state["net.a"] is state["net.c"] and state["net.b"].shape == (3, 4)


def test_one_file_is_written_at_a_time_and_an_error_is_raised_at_the_next_look(tmp_path, slow, monkeypatch):
    io = AtomicCheckpointIO("background")
    io.save_checkpoint(state_of(1.0), tmp_path / "a.ckpt")
    slow.set()
    io.save_checkpoint(state_of(2.0), tmp_path / "b.ckpt")
    assert (tmp_path / "a.ckpt").exists()
    io.wait()
    (tmp_path / "file").touch()
    io.save_checkpoint(state_of(3.0), tmp_path / "file" / "c.ckpt")
    with pytest.raises(RunError, match="c.ckpt: "):
        while io.busy():
            time.sleep(0.001)
    io.teardown()  # it was said once


def test_a_checkpoint_that_is_gone_by_now_is_no_wrong_request(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step=00000001.ckpt")


def test_without_memory_for_a_copy_training_waits(tmp_path, monkeypatch):
    def none(state):
        raise MemoryError("can't allocate memory")

    monkeypatch.setattr(saving, "copied", none)
    io = AtomicCheckpointIO("background")
    with pytest.warns(UserWarning, match=r"checkpoints.saving: no memory for a copy \(can't allocate memory\)"):
        io.save_checkpoint(state_of(1.0), tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").exists()


def test_both_ways_of_saving_leave_the_same(tmp_path, tiny, monkeypatch):
    copies, own = [], AtomicCheckpointIO._own
    monkeypatch.setattr(
        AtomicCheckpointIO, "_own", lambda io, state: copies.append(state["global_step"]) or own(io, state)
    )
    for how in ("background", "blocking"):
        assert main(["fit", *tiny, "--checkpoints.saving", how, "--run_dir", str(tmp_path / how)]) == 0
    assert copies == [3, 6, 9]  # the last one is waited for and needs none
    assert steps(tmp_path / "background") == steps(tmp_path / "blocking") == [12, 9, 6, 3]
    for one, other in zip(*(checkpoints_in(tmp_path / how) for how in ("background", "blocking")), strict=True):
        one, other = read(one)["state_dict"], read(other)["state_dict"]
        assert all(torch.equal(one[name], value) for name, value in other.items())
    assert list((tmp_path / "background").rglob(".*")) == []


def test_two_good_ones_are_kept_beside_one_in_doubt(run):
    damaged = run / "checkpoints" / "step=00000007.ckpt"
    damaged.write_bytes(b"half of it")
    manifest_of(damaged).write_bytes(b"")
    with pytest.warns(UserWarning, match="step=00000007.ckpt is damaged"):
        assert main(["fit", "--run_dir", str(run), "--resume", "--checkpoints.keep", "2", "--schedule.decay", "0"]) == 0
    assert steps(run) == [12, 9]
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == [
        f"step={step:08d}.ckpt{suffix}" for step in (9, 12) for suffix in ("", ".sha256")
    ]


# -------------------------------------------------------------------------------------------------------------- resume
def test_a_damaged_newest_one_is_passed_over_with_one_line_and_exit_0(run, said, lines):
    newest = checkpoints_in(run)[0]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 16
    newest.write_bytes(data)
    now = time.time()
    os.utime(run / "checkpoints" / "step=00000003.ckpt", (now + 9, now + 9))
    with pytest.warns(UserWarning, match="step=00000006.ckpt is damaged: .*passed over for step=00000003.ckpt"):
        assert main(["fit", "--run_dir", str(run), "--resume"]) == 0
    assert [step for step, _ in lines(run).pairs("train/loss")] == list(range(1, 13))
    assert main(["test", "--ckpt_path", str(newest)]) == 0  # it has been written again
    os.truncate(newest, 10)
    said()
    assert main(["generate", str(newest), "--max_new_tokens", "2"]) == 1
    assert "step=00000006.ckpt is damaged" in said()[-1]


def test_where_nothing_can_be_resumed_nothing_begins(tmp_path, tiny, said):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for name in ("none", "empty", "file", "empty/checkpoints"):
        for argv in (["--run_dir", "--resume"], ["--init_from"], ["--branch_from"]):
            assert main(["fit", *tiny, argv[0], str(tmp_path / name), *argv[1:]]) in (
                (2,) if name != "file" else (1, 2)
            )
            assert said()[-1].startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


DEBRIS = [b"\xff\xfe", b'{"step": "x"}', b'{"step": NaN}', b"\0" * 99, b"[" * 100_000, b'{"step": 99}', b'{"step": 7']


def test_a_log_is_cut_to_the_step_whatever_stands_behind_it(tmp_path):
    log, good = tmp_path / "metrics.jsonl", b'{"step": 6}\n'
    log.write_bytes(good + b"\n".join(DEBRIS))
    cut_metrics(log, 7)
    assert log.read_bytes() == good
    log.unlink()
    os.mkfifo(log)
    cut_metrics(log, 7)
    assert log.read_bytes() == b""


def test_a_resume_is_not_stopped_by_what_lies_about(run, said):
    (run / "config.yaml").write_bytes(b"\xff")
    (run / "tensorboard" / "events.out.tfevents.9").mkdir()
    (run / "checkpoints" / "step=00000001.ckpt").mkdir()
    assert main(["fit", "--run_dir", str(run), "--resume", "--checkpoints.keep", "2"]) == 0
    assert steps(run)[-1] == 1 and (run / "config-until-step-6.yaml").read_bytes() == b"\xff"


def test_a_clock_set_back_changes_nothing(run, lines, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e9)
        assert main(["fit", "--run_dir", str(run), "--resume"]) == 0
    found = lines(run).all
    trained = [line for line in found if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 13))
    assert all(one["seconds"] <= other["seconds"] for one, other in zip(found, found[1:], strict=False))
    assert found[0]["seconds"] > 0 and steps(run)[0] == 12


# ----------------------------------------------------------------------------------------------------------- full disks
@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "tokenizer.json", "step=00000006.ckpt"])
def test_a_full_disk_ends_the_run_in_one_line(name, tmp_path, tiny, said, monkeypatch):
    opened, written, original = os.open, os.write, {}

    def open_(path, *args, **kwargs):
        number = opened(path, *args, **kwargs)
        original[number] = os.path.basename(os.fspath(path))
        return number

    def write(number, data):
        if original.get(number) == f".{name}.new":
            raise FULL
        return written(number, data)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    assert main(["fit", *tiny, "--run_dir", str(tmp_path / "run")]) == 1
    last = said()[-1]
    assert "/run/" in last and name in last and "No space left on device; " in last
    assert "bytes needed; " in last and "bytes free" in last
    if name.endswith(".ckpt"):
        assert steps(tmp_path / "run") == [3] and read(checkpoints_in(tmp_path / "run")[0])
        assert list((tmp_path / "run").rglob(".*")) == []
    else:
        assert not (tmp_path / "run").exists()


def test_a_limit_of_file_sizes_is_named(tmp_path, tiny, said):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        assert main(["fit", *tiny, "--run_dir", str(tmp_path / "run")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    last = said()[-1]
    assert "step=00000003.ckpt: File too large; " in last and "60,000 allowed in a file (ulimit -f)" in last
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, tiny, lines, monkeypatch):
    opened, written, logs, count = os.open, os.write, set(), 0

    def open_(path, *args, **kwargs):
        number = opened(path, *args, **kwargs)
        (logs.add if str(path).endswith("metrics.jsonl") else logs.discard)(number)
        return number

    def write(number, data):
        nonlocal count
        count += number in logs
        if number in logs and 4 <= count <= 9:
            if count % 2:
                raise FULL
            return written(number, data[:7])  # and then no more
        return written(number, data)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    with pytest.warns(UserWarning, match="metrics.jsonl: No space left on device") as warned:
        assert main(["fit", *tiny, "--run_dir", str(tmp_path / "run")]) == 0
    assert sum("metrics.jsonl" in str(one.message) for one in warned) == 1
    found = lines(tmp_path / "run").pairs("train/loss")
    assert 5 <= len(found) < 12 and found[-1][0] == 12 and steps(tmp_path / "run")[0] == 12


@pytest.mark.parametrize("sound", [0, 2])
def test_events_that_cannot_be_written_are_said_once(sound, tmp_path, tiny, monkeypatch):
    opened, count = os.open, 0

    def refuse(path, *args, **kwargs):
        nonlocal count
        count += "tfevents" in str(path)
        if "tfevents" in str(path) and count > sound:
            raise FULL
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.warns(UserWarning, match="tensorboard: No space left on device") as warned:
        assert main(["fit", *tiny, "--trainer.max_steps", "3", "--run_dir", str(tmp_path / "run")]) == 0
    assert sum("tensorboard" in str(one.message) for one in warned) == 1 and count == sound + 1


def test_test_json_is_whole_or_not_there(run, said, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(FULL))
    assert main(["test", "--run_dir", str(run)]) == 1
    assert "test.json: No space left on device" in said()[-1]
    assert not (run / "test.json").exists() and list(run.rglob(".*")) == []


# -------------------------------------------------------------------------------------------------------------- places
def test_the_second_run_in_a_directory_is_refused_and_told_by_whom(run, tmp_path, tiny, said):
    """Another process holds it: another open file is as good to the system."""
    text = {"pid": 4321, "host": "far", "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "new").mkdir()
    for folder, argv in ((run, ["--resume"]), (tmp_path / "new", tiny)):
        with open(folder / ".lock", "w+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(json.dumps(text))
            lock.flush()
            before = tree(folder)
            assert main(["fit", "--run_dir", str(folder), *argv]) == 2
            last = said()[-1]
            assert "in use by process 4321 on far since 2026-01-01T00:00:00+00:00; allowed: another dir" in last
            assert tree(folder) == before
            assert main(["validate", "--run_dir", str(run)]) == 0  # reading is free
    assert main(["fit", "--run_dir", str(run), "--resume"]) == 0  # a lock's file alone, of a process that died
    assert not (run / ".lock").exists()


def test_who_is_forked_does_not_hold_what_its_parent_holds(tmp_path):
    run_lock.hold(tmp_path)
    run_lock.hold(tmp_path)  # again: nothing
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    number = run_lock._held[tmp_path.resolve()]
    os.close(number)  # as the system does when the parent is killed
    run_lock._held.clear()
    run_lock.hold(tmp_path)
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    with open(tmp_path / ".lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run_lock.let_go()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_another_run_has_filled_meanwhile_is_left_alone(run, tiny, said, monkeypatch):
    monkeypatch.setattr("lit_small_lm.cli.run_options.checkpoints_in", lambda folder: [])  # as it was at the start
    before = tree(run)
    assert main(["fit", *tiny, "--run_dir", str(run)]) == 2
    assert "holds checkpoints by now, of another run" in said()[-1] and tree(run) == before


def test_odd_names_and_an_open_directory(tmp_path, tiny, monkeypatch):
    folder = tmp_path / ("it's a 'run' {of} 100% ü\n" + "x" * 150)
    short = ["--schedule.decay", "0", "--trainer.limit_val_batches", "0"]
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.warns(UserWarning, match=r"may be written to by everybody \(mode 777\)"):
        assert main(["fit", *tiny, *short, "--trainer.max_steps", "3", "--run_dir", str(folder)]) == 0
    folder.chmod(0o755)
    (folder / "checkpoints" / ".step=00000009.ckpt.new").touch()  # of a save that was killed
    assert main(["fit", "--run_dir", str(folder), "--resume", "--trainer.max_steps", "4"]) == 0
    assert steps(folder) == [4, 3] and list(folder.rglob(".*")) == []


def test_a_link_to_nowhere_is_no_run_directory(tmp_path, tiny, said):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert main(["fit", *tiny, "--run_dir", str(tmp_path / "link")]) == 2
    assert "link" in said()[-1] and not (tmp_path / "gone").exists()


def test_the_lock_is_refused_only_where_another_holds_it(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"):
        run_lock.hold(tmp_path)
    monkeypatch.undo()
    run_lock.let_go()
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RequestError, match="in use by another process"):
            run_lock.hold(tmp_path)
