"""Names are functions of identity, fit their fields, and never meet."""

from hypothesis import given
from hypothesis import strategies as st

from rerail_api.contract import BUCKETS, LABEL_BUCKET, LABEL_JOB_UID, LABEL_NODE_RANK, LABEL_SINCE_ROUND
from rerail_operator.core.names import (
    bucket,
    bucket_labels,
    config_map_name,
    content_hash,
    pod_labels,
    pod_name,
    revision_name,
    template_hash,
)

UID = "c0ffee12-0000-4000-8000-000000000000"
LONGEST_JOB = "j" * 40


def test_a_pod_is_named_by_job_uid_birth_round_and_slot() -> None:
    assert pod_name("gpt", UID, 3, 17) == "gpt-c0ffe-3-17"


def test_names_of_the_longest_job_fit_a_dns_label() -> None:
    names = (
        pod_name(LONGEST_JOB, UID, 99_999_999, 19_999),
        revision_name(LONGEST_JOB, UID, template_hash({})),
        config_map_name(LONGEST_JOB, UID, content_hash(b"")),
    )
    assert [len(name) <= 63 for name in names] == [True, True, True]


identities = st.tuples(
    st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True),
    st.sampled_from(["0a1b2-x", "0a1b3-x", "c0ffe-y"]),
    st.integers(0, 200),
    st.integers(0, 200),
)


@given(identities, identities)
def test_different_pods_have_different_names(
    one: tuple[str, str, int, int], other: tuple[str, str, int, int]
) -> None:
    assert (pod_name(*one) == pod_name(*other)) == (one == other)


def test_a_new_pod_holds_its_node_rank_since_its_birth() -> None:
    labels = pod_labels("gpt", UID, node_rank=4, birth_round=7, slot=20)
    assert (labels[LABEL_NODE_RANK], labels[LABEL_SINCE_ROUND]) == ("4", "7")
    assert bucket_labels(UID, bucket(20)).items() <= labels.items()


def test_the_buckets_share_the_slots_evenly() -> None:
    counts = [sum(1 for slot in range(BUCKETS * 5) if bucket(slot) == number) for number in range(BUCKETS)]
    assert counts == [5] * BUCKETS
    assert {bucket_labels(UID, number)[LABEL_BUCKET] for number in range(BUCKETS)} == {
        str(n) for n in range(BUCKETS)
    }
    assert bucket_labels(UID, 0)[LABEL_JOB_UID] == UID


def test_a_template_hash_sees_meaning_not_key_order() -> None:
    assert template_hash({"a": 1, "b": [1, 2]}) == template_hash({"b": [1, 2], "a": 1})
    assert template_hash({"a": 1, "b": [1, 2]}) != template_hash({"a": 1, "b": [2, 1]})


def test_a_content_hash_sees_where_one_part_ends() -> None:
    assert content_hash(b"ab", b"c") != content_hash(b"a", b"bc")
