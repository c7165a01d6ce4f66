"""A restart leaves no trace in the training: losses are those of a run that nothing disturbed."""

import json
import signal

import pytest

from .gang import Yard


def test_losses_after_two_kills_in_a_row_are_bit_for_bit_those_of_an_uninterrupted_run(
    yard: Yard, uninterrupted: dict[int, float]
) -> None:
    for step in (4, 6):
        gang = yard.start(ranks=2, at={"rank": 1, "point": "due", "step": step, "signal": "SIGKILL"})
        assert gang.end_of(1) == -signal.SIGKILL
        seen = gang.losses()
        assert max(seen) == step
        assert seen == {step: uninterrupted[step] for step in seen}
    last = yard.run(ranks=2)
    assert last.losses() == {step: uninterrupted[step] for step in (5, 6, 7, 8)}
    assert [line["resumed_from"] for line in last.progress() if "resumed_from" in line] == [4]


def test_four_ranks_resume_bit_for_bit(yard: Yard) -> None:
    straight = yard.run(f"--checkpoint.dir={yard.folder}/other", "--train.steps=6", ranks=4).losses()
    gang = yard.start(
        "--train.steps=6",
        "--optim.horizon_steps=6",
        ranks=4,
        at={"rank": 3, "point": "due", "step": 6, "signal": "SIGKILL"},
    )
    assert gang.end_of(3) == -signal.SIGKILL
    assert yard.run("--train.steps=6", ranks=4).losses() == {step: straight[step] for step in (5, 6)}


@pytest.mark.parametrize("ranks", [1, 4])
def test_another_number_of_ranks_continues_at_the_next_sample(
    yard: Yard, uninterrupted: dict[int, float], ranks: int
) -> None:
    half = yard.start("--train.steps=4", "--optim.horizon_steps=8", ranks=2)
    assert half.wait() == [0, 0]
    rest = yard.run(ranks=ranks)
    assert sorted(rest.losses()) == [5, 6, 7, 8]
    # The sums are taken in another order, so only the last digits may differ; another sample would show in the first.
    assert rest.losses() == pytest.approx({step: uninterrupted[step] for step in (5, 6, 7, 8)}, abs=2e-5)
    assert "written by 2 ranks" in rest.output()


def test_a_finished_training_started_again_does_nothing_and_is_done(yard: Yard) -> None:
    yard.run("--train.steps=2")
    again = yard.run("--train.steps=2")
    assert again.losses() == {}
    assert yard.committed() == [2]


def test_another_model_in_the_folder_is_refused_with_what_differs(yard: Yard) -> None:
    yard.run("--train.steps=2", "--optim.horizon_steps=8")
    gang = yard.start("--model.ffn=64", "--optim.lr=0.5")
    assert gang.wait() == [65]
    assert "model.ffn was 48, is 64, optim.lr was 0.005, is 0.5" in gang.output()


def test_other_data_is_refused(yard: Yard) -> None:
    yard.run("--train.steps=2", "--optim.horizon_steps=8")
    (yard.folder / "text").mkdir()
    (yard.folder / "text" / "a.txt").write_text("To be or not to be, that is the question. " * 50)
    gang = yard.start("--data.source=text", f"--data.path={yard.folder}/text")
    assert gang.wait() == [65]
    assert "was trained on other data" in gang.output()


def test_a_lost_folder_is_no_reason_to_begin_from_step_0(yard: Yard) -> None:
    gang = yard.start(ranks=2, env={"RERAIL_MIN_STEP": "4"})
    assert gang.wait() == [66, 66]
    assert "step 4 was committed before" in gang.output()
    assert yard.committed() == []


def test_never_resuming_begins_from_step_0_and_outdates_what_was_there(
    yard: Yard, uninterrupted: dict[int, float]
) -> None:
    yard.run("--train.steps=6", "--optim.horizon_steps=8")
    gang = yard.start(
        env={"RERAIL_RESUME": "Never"}, at={"point": "committed", "step": 2, "signal": "SIGKILL"}
    )
    assert gang.wait() == [-signal.SIGKILL]
    # Steps 4 and 6 belong to a training that the newer round never passed through.
    last = yard.run()
    assert [line["resumed_from"] for line in last.progress() if "resumed_from" in line] == [2]
    assert sorted(last.losses()) == [3, 4, 5, 6, 7, 8]


def test_progress_lines_follow_the_contract(yard: Yard) -> None:
    lines = yard.run("--train.steps=4").progress()
    assert [line["phase"] for line in lines] == [
        "init", "compile", "train", "train", "train", "save", "train", "train", "train", "save", "train",
    ]  # fmt: skip
    assert all(line["contract"] == 1 and line["total_steps"] == 4 for line in lines)
    # Before the checkpoint is read no step is known: 0 would read as progress that was thrown away.
    assert [line.get("step") for line in lines[:3]] == [None, None, 0]
    last = lines[-1]
    assert (last["step"], last["tokens"], last["checkpoint_step"]) == (4, 4 * 256, 4)
    assert json.dumps(last["loss"])


def test_only_the_newest_steps_are_kept_and_those_that_keep_every_names(yard: Yard) -> None:
    yard.run("--checkpoint.every_steps=1", "--checkpoint.keep=2", "--checkpoint.keep_every=3")
    assert yard.committed() == [3, 6, 7, 8]
    assert not list((yard.checkpoints / ".work").glob("*/pruned-*"))


def test_steps_that_a_later_round_did_not_go_on_from_are_swept_once_it_has_committed(yard: Yard) -> None:
    yard.run("--train.steps=6", "--optim.horizon_steps=8")
    yard.run("--checkpoint.every_steps=5", env={"RERAIL_RESUME": "Never"})
    assert yard.committed() == [5, 8]
    assert not list(yard.checkpoints.glob("*-step-*"))
