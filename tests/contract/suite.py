"""The contract of the Cluster port, as sentences. Subclasses bring the `stage` fixture."""

import pytest

from rerail_operator.shell.cluster import (
    AlreadyExists,
    Change,
    Conflict,
    Expired,
    Kind,
    NotFound,
    Rejected,
    Unavailable,
)
from rerail_operator.shell.observe import observe_pod
from tests.contract.stage import MARK, Stage, bound, events, gone, job, pod, unique, until


class CreatingContract:
    async def test_a_created_object_has_uid_version_and_time_and_can_be_read_back(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.POD, stage.namespace, pod(unique("p")))
        meta = created["metadata"]
        assert meta["uid"] and int(meta["resourceVersion"]) > 0 and meta["creationTimestamp"].endswith("Z")
        assert meta["namespace"] == stage.namespace and created["status"]["phase"] == "Pending"
        read = await stage.cluster.get(Kind.POD, stage.namespace, meta["name"])
        assert read["metadata"]["uid"] == meta["uid"]

    async def test_creating_twice_is_refused_and_changes_nothing(self, stage: Stage) -> None:
        name = unique("p")
        first = await stage.cluster.create(Kind.POD, stage.namespace, pod(name, labels={"a": "1"}))
        with pytest.raises(AlreadyExists):
            await stage.cluster.create(Kind.POD, stage.namespace, pod(name, labels={"a": "2"}))
        kept = await stage.cluster.get(Kind.POD, stage.namespace, name)
        assert kept["metadata"]["uid"] == first["metadata"]["uid"] and kept["metadata"]["labels"] == {
            "a": "1"
        }

    async def test_after_a_lost_reply_the_object_is_there_once(self, stage: Stage) -> None:
        name = unique("p")
        await stage.cluster.get(Kind.NODE, "", stage.nodes[0])
        await stage.lose_next_reply()
        with pytest.raises(Unavailable):
            await stage.cluster.create(Kind.POD, stage.namespace, pod(name))
        with pytest.raises(AlreadyExists):
            await stage.cluster.create(Kind.POD, stage.namespace, pod(name))
        assert (await stage.cluster.get(Kind.POD, stage.namespace, name))["metadata"]["uid"]

    async def test_what_is_not_there_is_not_found(self, stage: Stage) -> None:
        for kind in (Kind.POD, Kind.JOB, Kind.CONFIG_MAP):
            with pytest.raises(NotFound):
                await stage.cluster.get(kind, stage.namespace, "absent")

    async def test_a_job_gets_its_defaults_and_no_status(self, stage: Stage) -> None:
        wanted = {**job(unique("j")), "status": {"round": 7}}
        created = await stage.cluster.create(Kind.JOB, stage.namespace, wanted)
        assert created["spec"]["checkpoint"]["graceSeconds"] == 120 and created["spec"]["suspend"] is False
        assert "status" not in created and created["metadata"]["generation"] == 1

    async def test_an_unknown_field_of_a_job_is_refused_by_its_path(self, stage: Stage) -> None:
        with pytest.raises(Rejected, match=r"spec\.numNode") as refused:
            await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j"), numNode=4))
        assert not refused.value.retriable

    async def test_a_job_that_breaks_a_rule_is_refused_with_its_sentence(self, stage: Stage) -> None:
        bad = job(unique("j"))
        bad["spec"]["template"]["spec"]["containers"][0]["name"] = "main"
        with pytest.raises(Rejected, match="trainer"):
            await stage.cluster.create(Kind.JOB, stage.namespace, bad)

    async def test_a_dry_run_stores_nothing(self, stage: Stage) -> None:
        name = unique("p")
        dry = await stage.cluster.create(Kind.POD, stage.namespace, pod(name), dry_run=True)
        assert dry["metadata"]["name"] == name
        with pytest.raises(NotFound):
            await stage.cluster.get(Kind.POD, stage.namespace, name)

    async def test_a_typo_in_the_resources_is_refused_by_its_path(self, stage: Stage) -> None:
        typo = pod(unique("p"), resources={"limit": {"nvidia.com/gpu": "8"}})
        with pytest.raises(Rejected, match=r"spec\.containers\[0\]\.resources\.limit"):
            await stage.cluster.create(Kind.POD, stage.namespace, typo, dry_run=True)

    async def test_the_other_kinds_that_rerail_writes(self, stage: Stage) -> None:
        made = {
            Kind.CONFIG_MAP: {"data": {"a": "b"}, "immutable": True},
            Kind.REVISION: {"revision": 1, "data": {"template": {"x": 1}}},
            Kind.SECRET: {"stringData": {"a": "b"}},
            Kind.LEASE: {"spec": {"holderIdentity": "me", "leaseDurationSeconds": 9}},
            Kind.EVENT: {
                "involvedObject": {"kind": "TrainingJob", "name": "j", "namespace": stage.namespace},
                "reason": "Restarting",
                "message": "rank 3 exited 1",
                "type": "Warning",
            },
        }
        for kind, body in made.items():
            name = unique("o")
            await stage.cluster.create(kind, stage.namespace, {"metadata": {"name": name}, **body})
            read = await stage.cluster.get(kind, stage.namespace, name)
            assert read["metadata"]["uid"], kind


class WritingContract:
    async def test_a_guarded_status_write_goes_through_once(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        wanted = {**created, "status": {"round": 1, "phase": "Queued"}}
        written = await stage.cluster.replace(Kind.JOB, stage.namespace, wanted, status=True)
        assert written["status"]["round"] == 1
        assert int(written["metadata"]["resourceVersion"]) > int(created["metadata"]["resourceVersion"])
        with pytest.raises(Conflict):
            await stage.cluster.replace(Kind.JOB, stage.namespace, wanted, status=True)

    async def test_a_status_write_whose_reply_was_lost_shows_as_a_conflict(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        wanted = {**created, "status": {"round": 1}}
        await stage.lose_next_reply()
        # An HTTP client may repeat a PUT on its own; then its second try already meets our first.
        with pytest.raises((Unavailable, Conflict)):
            await stage.cluster.replace(Kind.JOB, stage.namespace, wanted, status=True)
        with pytest.raises(Conflict):
            await stage.cluster.replace(Kind.JOB, stage.namespace, wanted, status=True)
        read = await stage.cluster.get(Kind.JOB, stage.namespace, created["metadata"]["name"])
        assert read["status"]["round"] == 1

    async def test_a_status_write_leaves_the_spec_alone_and_the_other_way_round(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        both = {**created, "spec": {**created["spec"], "suspend": True}, "status": {"round": 3}}
        after = await stage.cluster.replace(Kind.JOB, stage.namespace, both, status=True)
        assert after["spec"]["suspend"] is False and after["status"]["round"] == 3
        both = {**after, "spec": {**after["spec"], "suspend": True}, "status": {"round": 9}}
        after = await stage.cluster.replace(Kind.JOB, stage.namespace, both)
        assert after["spec"]["suspend"] is True and after["status"]["round"] == 3
        assert after["metadata"]["generation"] == 2

    async def test_an_unknown_field_of_a_status_vanishes_and_the_reply_shows_it(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        wanted = {**created, "status": {"round": 1, "roundOfTomorrow": 2}}
        written = await stage.cluster.replace(Kind.JOB, stage.namespace, wanted, status=True)
        assert written["status"]["round"] == 1 and "roundOfTomorrow" not in written["status"]

    async def test_a_status_may_not_lower_the_round(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        high = {**created, "status": {"round": 5}}
        high = await stage.cluster.replace(Kind.JOB, stage.namespace, high, status=True)
        with pytest.raises(Rejected, match="round"):
            low = {**high, "status": {**high["status"], "round": 4}}
            await stage.cluster.replace(Kind.JOB, stage.namespace, low, status=True)

    async def test_a_write_that_changes_nothing_makes_no_version(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        first = await stage.cluster.replace(
            Kind.JOB, stage.namespace, {**created, "status": {"round": 1}}, status=True
        )
        again = await stage.cluster.replace(Kind.JOB, stage.namespace, first, status=True)
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    async def test_a_job_or_lease_is_never_replaced_without_a_version(self, stage: Stage) -> None:
        for kind, body in ((Kind.JOB, job(unique("j"))), (Kind.LEASE, {"metadata": {"name": unique("l")}})):
            created = await stage.cluster.create(kind, stage.namespace, body)
            del created["metadata"]["resourceVersion"]
            with pytest.raises(Rejected, match="resourceVersion"):
                await stage.cluster.replace(kind, stage.namespace, created)

    async def test_replacing_what_is_gone_is_not_found(self, stage: Stage) -> None:
        created = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        await stage.cluster.delete(Kind.JOB, stage.namespace, created["metadata"]["name"])
        with pytest.raises(NotFound):
            await stage.cluster.replace(Kind.JOB, stage.namespace, created, status=True)

    async def test_a_lease_changes_hands_by_its_version(self, stage: Stage) -> None:
        body = {"metadata": {"name": unique("l")}, "spec": {"holderIdentity": "a", "leaseTransitions": 1}}
        seen = await stage.cluster.create(Kind.LEASE, stage.namespace, body)
        taken = {**seen, "spec": {"holderIdentity": "b", "leaseTransitions": 2}}
        await stage.cluster.replace(Kind.LEASE, stage.namespace, taken)
        with pytest.raises(Conflict):
            late = {**seen, "spec": {"holderIdentity": "c", "leaseTransitions": 2}}
            await stage.cluster.replace(Kind.LEASE, stage.namespace, late)

    async def test_a_label_patch_is_guarded_by_uid_and_version(self, stage: Stage) -> None:
        name = unique("p")
        created = await stage.cluster.create(
            Kind.POD, stage.namespace, pod(name, labels={"a": "1", "b": "1"})
        )
        meta = created["metadata"]

        def patch(**guard: str) -> dict[str, object]:
            return {"metadata": {**guard, "labels": {"a": "2", "b": None}}}

        for wrong in ({"uid": "00000000-0000-0000-0000-000000000000"}, {"resourceVersion": "1"}):
            with pytest.raises(Conflict):
                await stage.cluster.patch(Kind.POD, stage.namespace, name, patch(**wrong))
        right = patch(uid=meta["uid"])
        after = await stage.cluster.patch(Kind.POD, stage.namespace, name, right)
        assert after["metadata"]["labels"] == {"a": "2"}
        with pytest.raises(NotFound):
            await stage.cluster.patch(Kind.POD, stage.namespace, unique("p"), right)

    async def test_a_pods_containers_cannot_be_patched(self, stage: Stage) -> None:
        name = unique("p")
        await stage.cluster.create(Kind.POD, stage.namespace, pod(name))
        with pytest.raises(Rejected):
            other = {"spec": {"containers": [{"name": "trainer", "image": "x", "command": ["y"]}]}}
            await stage.cluster.patch(Kind.POD, stage.namespace, name, other)


class DeletingContract:
    async def test_a_delete_with_another_uid_finds_nothing_and_harms_nothing(self, stage: Stage) -> None:
        name = unique("p")
        created = await stage.cluster.create(Kind.POD, stage.namespace, pod(name, "no-such-node"))
        with pytest.raises(NotFound):
            await stage.cluster.delete(Kind.POD, stage.namespace, name, uid="0000-not-it")
        assert (await stage.cluster.get(Kind.POD, stage.namespace, name))["metadata"]["uid"]
        await stage.cluster.delete(Kind.POD, stage.namespace, name, uid=created["metadata"]["uid"])
        with pytest.raises(NotFound):
            await stage.cluster.delete(Kind.POD, stage.namespace, name)

    async def test_an_unbound_pod_is_gone_at_once(self, stage: Stage) -> None:
        name = unique("p")
        await stage.cluster.create(Kind.POD, stage.namespace, pod(name, node="no-such-node"))
        await stage.cluster.delete(Kind.POD, stage.namespace, name)
        with pytest.raises(NotFound):
            await stage.cluster.get(Kind.POD, stage.namespace, name)

    async def test_a_bound_pod_hangs_until_its_kubelet_lets_it_go(self, stage: Stage) -> None:
        name = unique("p")
        created = await stage.cluster.create(Kind.POD, stage.namespace, pod(name, stage.nodes[0]))
        await bound(stage, name)
        await stage.cluster.delete(Kind.POD, stage.namespace, name, uid=created["metadata"]["uid"])
        hanging = await stage.cluster.get(Kind.POD, stage.namespace, name)
        assert hanging["metadata"]["deletionTimestamp"]
        assert hanging["metadata"]["deletionGracePeriodSeconds"] == 30
        with pytest.raises(AlreadyExists):
            await stage.cluster.create(Kind.POD, stage.namespace, pod(name))
        await stage.let_go(hanging)
        await gone(stage, Kind.POD, name)

    async def test_a_second_delete_shortens_the_grace_and_zero_ends_it(self, stage: Stage) -> None:
        name = unique("p")
        await stage.cluster.create(Kind.POD, stage.namespace, pod(name, stage.nodes[0]))
        await bound(stage, name)
        for asked, kept in ((20, 20), (10, 10), (25, 10)):
            await stage.cluster.delete(Kind.POD, stage.namespace, name, grace_seconds=asked)
            hanging = await stage.cluster.get(Kind.POD, stage.namespace, name)
            assert hanging["metadata"]["deletionGracePeriodSeconds"] == kept
        await stage.cluster.delete(Kind.POD, stage.namespace, name, grace_seconds=0)
        await gone(stage, Kind.POD, name)

    async def test_a_bucket_goes_down_without_its_neighbours(self, stage: Stage) -> None:
        mark, names = unique("m"), [unique("p") for _ in range(4)]
        for index, name in enumerate(names):
            labels = {MARK: mark, "bucket": str(index % 2)}
            await stage.cluster.create(Kind.POD, stage.namespace, pod(name, "no-such-node", labels))
        await stage.cluster.delete_collection(Kind.POD, stage.namespace, {MARK: mark, "bucket": "1"})
        await gone(stage, Kind.POD, names[3])
        left = await stage.cluster.list(Kind.POD, labels=f"{MARK}={mark}")
        assert sorted(p["metadata"]["name"] for p in left.items) == sorted([names[0], names[2]])

    async def test_a_bucket_of_another_namespace_is_left_alone(self, stage: Stage) -> None:
        name, mark = unique("p"), unique("m")
        await stage.cluster.create(Kind.POD, stage.namespace, pod(name, "no-such-node", {MARK: mark}))
        await stage.cluster.delete_collection(Kind.POD, "kube-system", {MARK: mark})
        assert await stage.cluster.get(Kind.POD, stage.namespace, name)

    async def test_what_a_deleted_job_owned_goes_with_it(self, stage: Stage) -> None:
        owner = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
        meta, name = owner["metadata"], unique("p")
        owned = pod(name, "no-such-node")
        owned["metadata"]["ownerReferences"] = [
            {
                "apiVersion": "rerail.dev/v1alpha1",
                "kind": "TrainingJob",
                "name": meta["name"],
                "uid": meta["uid"],
                "controller": True,
            }
        ]
        await stage.cluster.create(Kind.POD, stage.namespace, owned)
        await stage.cluster.delete(Kind.JOB, stage.namespace, meta["name"], uid=meta["uid"])
        # The real collector looks for new kinds, such as ours, every 30 s only.
        await gone(stage, Kind.POD, name, seconds=100.0)


class LookingContract:
    SELECTORS = {  # noqa: RUF012 - a table
        "{m}": ["a", "b", "c"],
        "{m},tier=one": ["a"],
        "{m},tier!=one": ["b", "c"],
        "{m},tier": ["a", "b"],
        "{m},!tier": ["c"],
        "{m},tier in (one,two)": ["a", "b"],
        "{m},tier notin (one)": ["b", "c"],
    }

    async def test_label_selectors(self, stage: Stage) -> None:
        mark = unique("m")
        for name, labels in {"a": {"tier": "one"}, "b": {"tier": "two"}, "c": {}}.items():
            body = {"metadata": {"name": unique(name), "labels": {MARK: mark, **labels}}}
            await stage.cluster.create(Kind.CONFIG_MAP, stage.namespace, body)
        for selector, wanted in self.SELECTORS.items():
            chosen = await stage.cluster.list(Kind.CONFIG_MAP, labels=selector.format(m=f"{MARK}={mark}"))
            found = sorted(entry["metadata"]["name"][0] for entry in chosen.items)
            assert found == wanted, selector

    async def test_bound_pods_are_told_from_unbound_ones(self, stage: Stage) -> None:
        mark, one, two = unique("m"), unique("p"), unique("p")
        await stage.cluster.create(Kind.POD, stage.namespace, pod(one, stage.nodes[0], {MARK: mark}))
        await stage.cluster.create(Kind.POD, stage.namespace, pod(two, "no-such-node", {MARK: mark}))
        await bound(stage, one)
        fields = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
        chosen = await stage.cluster.list(Kind.POD, labels=f"{MARK}={mark}", fields=fields)
        assert [entry["metadata"]["name"] for entry in chosen.items] == [one]

    async def test_a_pod_pinned_to_no_node_says_why_it_waits(self, stage: Stage) -> None:
        name = unique("p")
        await stage.cluster.create(Kind.POD, stage.namespace, pod(name, "no-such-node", worker_labels()))

        async def why() -> str:
            seen = observe_pod(await stage.cluster.get(Kind.POD, stage.namespace, name))
            return seen.unschedulable if seen else ""

        assert "NodeAffinity" in await until("kube-scheduler says why", why)

    async def test_a_watch_replays_what_has_happened_since(self, stage: Stage) -> None:
        mark, name = unique("m"), unique("c")
        body = {"metadata": {"name": name, "labels": {MARK: mark}}, "data": {"a": "1"}}
        before = (await stage.cluster.list(Kind.CONFIG_MAP, labels=f"{MARK}={mark}")).resource_version
        made = await stage.cluster.create(Kind.CONFIG_MAP, stage.namespace, body)
        await stage.cluster.patch(Kind.CONFIG_MAP, stage.namespace, name, {"data": {"a": "2"}})
        await stage.cluster.delete(Kind.CONFIG_MAP, stage.namespace, name)
        seen = await events(stage.cluster.watch(Kind.CONFIG_MAP, before, labels=f"{MARK}={mark}"), 3)
        assert [event.change for event in seen] == [Change.ADDED, Change.MODIFIED, Change.DELETED]
        versions = [int(event.object["metadata"]["resourceVersion"]) for event in seen]
        assert versions == sorted(set(versions)) and versions[0] == int(made["metadata"]["resourceVersion"])
        assert {event.object["metadata"]["uid"] for event in seen} == {made["metadata"]["uid"]}

    async def test_a_watch_goes_on_from_where_the_last_one_ended(self, stage: Stage) -> None:
        mark, name = unique("m"), unique("c")
        body = {"metadata": {"name": name, "labels": {MARK: mark}}}
        before = (await stage.cluster.list(Kind.CONFIG_MAP)).resource_version
        await stage.cluster.create(Kind.CONFIG_MAP, stage.namespace, body)
        chosen = f"{MARK}={mark}"
        first = await events(stage.cluster.watch(Kind.CONFIG_MAP, before, labels=chosen), 1)
        await stage.cluster.delete(Kind.CONFIG_MAP, stage.namespace, name)
        at = first[0].object["metadata"]["resourceVersion"]
        second = await events(stage.cluster.watch(Kind.CONFIG_MAP, at, labels=chosen), 1)
        assert [event.change for event in (*first, *second)] == [Change.ADDED, Change.DELETED]

    async def test_leaving_and_entering_a_selection_are_deletion_and_addition(self, stage: Stage) -> None:
        mark, name = unique("m"), unique("c")
        body = {"metadata": {"name": name, "labels": {MARK: mark}}}
        before = (await stage.cluster.list(Kind.CONFIG_MAP)).resource_version
        await stage.cluster.create(Kind.CONFIG_MAP, stage.namespace, body)
        for value in (None, mark):
            patch = {"metadata": {"labels": {MARK: value}}}
            await stage.cluster.patch(Kind.CONFIG_MAP, stage.namespace, name, patch)
        seen = await events(stage.cluster.watch(Kind.CONFIG_MAP, before, labels=f"{MARK}={mark}"), 3)
        assert [event.change for event in seen] == [Change.ADDED, Change.DELETED, Change.ADDED]

    async def test_a_watch_from_too_long_ago_has_expired(self, stage: Stage) -> None:
        old = await stage.forget_history()
        with pytest.raises(Expired):
            await events(stage.cluster.watch(Kind.POD, old), 1000)


class ClusterContract(CreatingContract, WritingContract, DeletingContract, LookingContract):
    """All of it."""


def worker_labels() -> dict[str, str]:
    """Labels of some worker pod of no job in particular."""
    names = ("node-rank", "since-round", "birth-round", "slot")
    return {f"rerail.dev/{name}": "0" for name in names}
