"""KubeCluster on a scripted API server: throttling, 5xx, dropped replies, credentials, lists, watches."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rerail_operator.shell.cluster import (
    Change,
    ClusterError,
    Conflict,
    Expired,
    Forbidden,
    Kind,
    NotFound,
    Rejected,
    Unavailable,
    WatchEvent,
)
from rerail_operator.shell.kube import client, session
from rerail_operator.shell.kube.client import KubeCluster
from rerail_operator.shell.observe import worker_record
from rerail_operator.shell.raw import RawPod
from rerail_operator.shell.streams import Selection
from tests.shell.fake_api import adapter, bookmark, event, reply, status, stream

POD: dict[str, Any] = {"metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "5"}}


async def watched(cluster: KubeCluster, **selectors: str) -> list[WatchEvent]:
    async with aclosing(cluster.watch(Kind.POD, "1", **selectors)) as source:  # type: ignore[type-var]
        return [seen async for seen in source]


class TestRequests:
    async def test_each_call_goes_where_kubernetes_expects_it(self, tmp_path: Path) -> None:
        async with adapter(tmp_path, reply(200, POD)) as (cluster, api):
            await cluster.create(Kind.POD, "n", {"metadata": {"name": "p"}}, dry_run=True)
            await cluster.replace(Kind.JOB, "n", POD, status=True)
            await cluster.patch(Kind.POD, "n", "p", {"metadata": {"uid": "u"}})
            await cluster.delete(Kind.POD, "n", "p", uid="u", grace_seconds=0)
            await cluster.delete_collection(Kind.POD, "n", {"a": "1", "b": "2"})
            await cluster.get(Kind.NODE, "", "node-1")
            assert await cluster.fetch("/openid/v1/jwks") == POD
        create, replace, patch, delete, collection, node, keys = api.seen
        assert (create.method, create.path) == ("POST", "/api/v1/namespaces/n/pods")
        assert create.query == {"fieldValidation": "Strict", "dryRun": "All"}
        assert create.body == {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
        assert create.authorization == "Bearer secret"
        job_status = "/apis/rerail.dev/v1alpha1/namespaces/n/trainingjobs/p/status"
        assert (replace.method, replace.path) == ("PUT", job_status)
        assert (patch.method, patch.content_type) == ("PATCH", "application/merge-patch+json")
        assert delete.body["preconditions"] == {"uid": "u"} and delete.body["gracePeriodSeconds"] == 0
        assert (collection.method, collection.path) == ("DELETE", "/api/v1/namespaces/n/pods")
        assert collection.query == {"labelSelector": "a=1,b=2"}
        assert node.path == "/api/v1/nodes/node-1" and keys.path == "/openid/v1/jwks"

    async def test_429_is_waited_out_as_the_server_asks_and_shrinks_the_window(self, tmp_path: Path) -> None:
        busy = reply(429, status(429, "too many requests"), Retry_After="1")
        async with adapter(tmp_path, busy, reply(201, POD)) as (cluster, api):
            before, began = cluster.limiter.window, time.monotonic()
            assert await cluster.create(Kind.POD, "n", POD) == POD
            assert time.monotonic() - began >= 1.0
            assert len(api.seen) == 2 and cluster.limiter.window == before // 2

    async def test_429_for_ever_is_unavailable_with_the_servers_wish(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "THROTTLE_PATIENCE_SECONDS", 0.0)
        busy = reply(429, status(429, "too many requests", retryAfterSeconds=7))
        async with adapter(tmp_path, busy) as (cluster, api):
            with pytest.raises(Unavailable, match="too many requests") as error:
                await cluster.create(Kind.POD, "n", POD)
            assert error.value.retry_after == 7.0 and len(api.seen) == 1

    async def test_the_lease_does_not_wait_for_the_limiter(self, tmp_path: Path) -> None:
        busy = reply(429, status(429, "too many requests"), Retry_After="5")
        async with adapter(tmp_path, busy, reply(200, POD)) as (cluster, _api):
            with pytest.raises(Unavailable):
                await cluster.get(Kind.LEASE, "n", "rerail")
            cluster.limiter.throttled(60.0)
            async with asyncio.timeout(2.0):
                assert await cluster.get(Kind.LEASE, "n", "rerail") == POD

    async def test_a_server_that_answers_nothing_is_unavailable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def silence(_request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(3600)
            raise AssertionError

        monkeypatch.setitem(session._TIMEOUTS, session.Lane.LEASE, 0.2)
        async with adapter(tmp_path, silence) as (cluster, _api):
            with pytest.raises(Unavailable, match="get leases: no answer"):
                await cluster.get(Kind.LEASE, "n", "rerail")

    async def test_a_reply_cut_off_is_unavailable_and_the_create_is_not_repeated(
        self, tmp_path: Path
    ) -> None:
        async def cut(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.close()
            return web.Response()

        async with adapter(tmp_path, cut) as (cluster, api):
            with pytest.raises(Unavailable, match="create pods: no answer"):
                await cluster.create(Kind.POD, "n", POD)
            assert len(api.seen) == 1

    async def test_a_refused_connection_is_unavailable(self, tmp_path: Path) -> None:
        async with adapter(tmp_path, reply(200, POD)) as (_, api):
            path = api.kubeconfig(tmp_path / "later")
        async with KubeCluster.from_environment(str(path)) as cluster:
            with pytest.raises(Unavailable, match="get pods: no answer"):
                await cluster.get(Kind.POD, "n", "p")

    async def test_a_collection_deletes_reply_is_left_unread(self, tmp_path: Path) -> None:
        async def endless(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"items": [')
            await asyncio.sleep(3600)
            return response

        async with adapter(tmp_path, endless) as (cluster, _api):
            async with asyncio.timeout(5.0):
                await cluster.delete_collection(Kind.POD, "n", {"a": "1"})


class TestCredentials:
    async def test_a_new_token_is_read_after_a_401_and_tried_once(self, tmp_path: Path) -> None:
        refused = reply(401, status(401, "Unauthorized"))
        async with adapter(tmp_path, refused, reply(200, POD)) as (cluster, api):
            api.kubeconfig(tmp_path / "config", token="fresh")
            assert await cluster.get(Kind.POD, "n", "p") == POD
        assert [seen.authorization for seen in api.seen] == ["Bearer secret", "Bearer fresh"]

    async def test_an_expired_token_is_named(self, tmp_path: Path) -> None:
        async with adapter(tmp_path, reply(401, status(401, "Unauthorized"))) as (cluster, api):
            with pytest.raises(Unavailable, match="expired token"):
                await cluster.get(Kind.POD, "n", "p")
            assert len(api.seen) == 1

    async def test_a_kubeconfig_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="no usable credentials"):
            async with KubeCluster.from_environment(str(tmp_path / "absent")):
                raise AssertionError

    async def test_a_kubeconfig_that_vanished_is_no_reason_to_blame_the_object(self, tmp_path: Path) -> None:
        async with adapter(tmp_path, reply(401, status(401, "Unauthorized"))) as (cluster, _api):
            (tmp_path / "config").unlink()
            with pytest.raises(Unavailable, match="no usable credentials"):
                await cluster.get(Kind.POD, "n", "p")


class TestLists:
    async def test_pages_are_followed_to_the_end(self, tmp_path: Path) -> None:
        pages = [
            {"metadata": {"resourceVersion": "9", "continue": "c1"}, "items": [POD]},
            {"metadata": {"resourceVersion": "9", "continue": ""}, "items": [POD, POD]},
        ]
        async with adapter(tmp_path, *(reply(200, page) for page in pages)) as (cluster, api):
            listing = await cluster.list(Kind.POD, labels="a=1", fields="spec.nodeName!=")
        assert len(listing.items) == 3 and listing.resource_version == "9"
        first, second = (seen.query for seen in api.seen)
        assert first["labelSelector"] == "a=1" and first["fieldSelector"] == "spec.nodeName!="
        assert first["limit"] == str(client.PAGE_SIZE) and second["continue"] == "c1"

    async def test_a_page_token_that_has_expired_is_expired(self, tmp_path: Path) -> None:
        page = {"metadata": {"resourceVersion": "9", "continue": "c1"}, "items": []}
        gone = reply(410, status(410, "The provided continue parameter is too old", "Expired"))
        async with adapter(tmp_path, reply(200, page), gone) as (cluster, _api):
            with pytest.raises(Expired):
                await cluster.list(Kind.POD)

    async def test_one_odd_object_does_not_hide_the_others(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        odd = {"metadata": {"name": "odd", "namespace": "n", "uid": "x"}, "spec": {"containers": "none"}}
        page = {"metadata": {"resourceVersion": "9"}, "items": [odd, POD]}
        async with adapter(tmp_path, reply(200, page)) as (cluster, _api):
            snapshot = await cluster.list_as(Selection(Kind.POD), RawPod, worker_record)
        assert [record.uid for record in snapshot.objects] == ["u"]
        assert "left out n/odd" in caplog.text


class TestWatches:
    async def test_events_and_bookmarks_come_through_until_a_clean_end(self, tmp_path: Path) -> None:
        lines = [event("ADDED", POD), bookmark(7), event("DELETED", POD)]
        async with adapter(tmp_path, stream(*lines)) as (cluster, api):
            seen = await watched(cluster, labels="a=1")
        assert [entry.change for entry in seen] == [Change.ADDED, Change.BOOKMARK, Change.DELETED]
        assert seen[1].object["metadata"]["resourceVersion"] == "7"
        query = api.seen[0].query
        assert query["resourceVersion"] == "1" and query["allowWatchBookmarks"] == "true"
        assert query["watch"] == "true" and 300 <= int(query["timeoutSeconds"]) <= 600

    @pytest.mark.parametrize("piece", [1, 7, 4096])
    async def test_the_bytes_may_come_in_any_pieces(self, tmp_path: Path, piece: int) -> None:
        long = {**POD, "spec": {"containers": [{"name": "x" * 300}]}}
        lines = [event("ADDED", long), event("MODIFIED", POD), bookmark(8)]
        async with adapter(tmp_path, stream(*lines, piece=piece)) as (cluster, _api):
            seen = await watched(cluster)
        assert [entry.object for entry in seen[:2]] == [long, POD] and len(seen) == 3

    async def test_an_event_larger_than_any_buffer(self, tmp_path: Path) -> None:
        large = {**POD, "note": "x" * 3_000_000}
        async with adapter(tmp_path, stream(event("ADDED", large))) as (cluster, _api):
            assert (await watched(cluster))[0].object == large

    BROKEN = {  # noqa: RUF012 - a table
        "410 in the stream": (stream(event("ERROR", status(410, "too old resource version"))), Expired),
        "500 in the stream": (stream(event("ERROR", status(500, "etcd is away"))), Unavailable),
        "a stream dropped": (stream(event("ADDED", POD), drop=True), Unavailable),
        "an event cut off": (stream(b'{"type": "ADDED", "obj'), Unavailable),
        "a line that is no event": (stream(b"<html>\n"), Unavailable),
        "410 at once": (reply(410, status(410, "too old resource version")), Expired),
        "403 at once": (
            reply(403, status(403, 'pods is forbidden: User "u" cannot watch resource "pods"')),
            Forbidden,
        ),
        "503 at once": (reply(503, status(503, "starting")), Unavailable),
    }

    @pytest.mark.parametrize("case", BROKEN)
    async def test_how_a_watch_breaks(self, tmp_path: Path, case: str) -> None:
        answer, error = self.BROKEN[case]
        async with adapter(tmp_path, answer) as (cluster, _api):
            with pytest.raises(error):
                await watched(cluster)

    async def test_a_silent_stream_is_dropped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session, "WATCH_READ_SECONDS", 0.2)
        hold = asyncio.Event()
        async with adapter(tmp_path, stream(event("ADDED", POD), hold=hold)) as (cluster, _api):
            with pytest.raises(Unavailable, match="watch pods: no answer"):
                await watched(cluster)
            hold.set()

    async def test_an_accepted_watch_says_so_at_once_however_quiet_it_stays(self, tmp_path: Path) -> None:
        hold = asyncio.Event()
        async with adapter(tmp_path, stream(hold=hold)) as (cluster, _api):
            source = cluster.watch_as(Selection(Kind.POD), "41", RawPod, worker_record)
            first = await anext(source)
            assert (first.change, first.version) == (Change.BOOKMARK, "41")
            hold.set()
            assert [seen async for seen in source] == []

    async def test_watches_take_no_place_in_the_window(self, tmp_path: Path) -> None:
        hold = asyncio.Event()
        async with adapter(tmp_path, stream(bookmark(2), hold=hold)) as (cluster, _api):
            source = cluster.watch(Kind.POD, "1")
            assert (await anext(source)).change is Change.BOOKMARK
            assert cluster.limiter.running == 0
            hold.set()
            await source.aclose()  # type: ignore[attr-defined]


ANSWERS: dict[str, tuple[int, dict[str, Any], type[ClusterError], str]] = {
    "a right that the role lacks": (
        403,
        status(
            403,
            'pods is forbidden: User "x" cannot create resource "pods" in API group "" in the namespace "n"',
        ),
        Forbidden,
        "role does not allow create on pods",
    ),
    "Pod Security": (
        403,
        status(403, 'pods "p" is forbidden: violates PodSecurity "restricted:latest": privileged'),
        Rejected,
        "violates PodSecurity",
    ),
    "quota": (
        403,
        status(
            403, 'pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2'
        ),
        Rejected,
        "exceeded quota",
    ),
    "a namespace whose service account is not there yet": (
        403,
        status(403, 'pods "p" is forbidden: error looking up service account n/default: not found'),
        Rejected,
        "service account",
    ),
    "the quota's own bookkeeping": (
        409,
        status(
            409, "Operation cannot be fulfilled on resourcequotas: the object has been modified", "Conflict"
        ),
        Unavailable,
        "resourcequotas",
    ),
    "a namespace that is not there": (
        404,
        status(404, 'namespaces "n" not found', "NotFound"),
        Rejected,
        "namespaces",
    ),
    "too large": (413, status(413, "Request entity too large"), Rejected, "too large"),
    "invalid": (
        422,
        status(422, 'Pod "p" is invalid: spec.x: Required value', "Invalid"),
        Rejected,
        "spec.x",
    ),
    "a webhook that is down": (500, status(500, "failed calling webhook"), Unavailable, "webhook"),
    "a proxy's page": (502, {"oops": True}, Unavailable, "create pods"),
}
RETRIABLE = {"quota", "a namespace whose service account is not there yet"}


class TestAnswers:
    @pytest.mark.parametrize("case", ANSWERS)
    async def test_what_a_create_is_told(self, tmp_path: Path, case: str) -> None:
        code, body, kind, words = ANSWERS[case]
        async with adapter(tmp_path, reply(code, body)) as (cluster, _api):
            with pytest.raises(ClusterError, match=words) as error:
                await cluster.create(Kind.POD, "n", POD)
        assert type(error.value) is kind
        if isinstance(error.value, Rejected):
            assert error.value.retriable is (case in RETRIABLE)

    async def test_a_delete_that_meets_another_uid_has_found_nothing(self, tmp_path: Path) -> None:
        for words in (
            "Precondition failed: UID in precondition: a, UID in object meta: b",
            "the UID in the precondition (a) does not match the UID in record (b)",
        ):
            async with adapter(tmp_path, reply(409, status(409, words, "Conflict"))) as (cluster, _api):
                with pytest.raises(NotFound):
                    await cluster.delete(Kind.POD, "n", "p", uid="a")

    async def test_a_patch_that_meets_another_uid_is_a_conflict(self, tmp_path: Path) -> None:
        causes = [{"field": "metadata.uid", "message": "field is immutable"}]
        answer = reply(422, status(422, "invalid", "Invalid", causes=causes))
        async with adapter(tmp_path, answer) as (cluster, _api):
            with pytest.raises(Conflict):
                await cluster.patch(Kind.POD, "n", "p", {"metadata": {"uid": "a"}})

    async def test_a_reply_that_is_no_json_is_unavailable(self, tmp_path: Path) -> None:
        async def html(_request: web.Request) -> web.StreamResponse:
            return web.Response(text="<html>", content_type="text/html")

        async with adapter(tmp_path, html) as (cluster, _api):
            with pytest.raises(Unavailable, match="cannot be read"):
                await cluster.get(Kind.POD, "n", "p")
