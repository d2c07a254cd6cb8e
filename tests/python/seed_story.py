"""The seed story (S01 to S03, S05 to S08) through the local service, from Python: two daemons, a real node between them.

usage: seed_story.py PROTO_DIR ADMIN_DATA MEMBER_DATA
"""

import concurrent.futures
import itertools
import json
import pathlib
import sys
import tempfile

import grpc

from headwater_local import connect, failure, generate

# What a loaded machine may take before it counts as stuck.
PATIENCE = 60.0
PATIENCE_MS = 60_000

# The last of the integers that every JSON reader takes as they are, and one that a double would round.
BIG = 9007199254740991
ROUNDED = 9007199254740993


def synced(stub, pb, space):
    """Awaits until the node and this side are proven equal; returns the receipt."""
    steps = list(stub.AwaitSynced(pb.AwaitSyncedRequest(space=space, patience=pb.Patience(timeout_ms=PATIENCE_MS)), timeout=PATIENCE))
    last = steps[-1]
    assert last.WhichOneof("step") == "synced", last
    assert all(step.WhichOneof("step") == "progress" for step in steps[:-1]), "progress, then exactly one answer"
    return last.synced.receipt


def fields(answer):
    return json.loads(answer.fields_json)


def put(stub, pb, space, kind, name, **values):
    request = pb.PutObjectRequest(space=space, type=kind, id=name, fields_json=json.dumps(values))
    return stub.PutObject(request, timeout=PATIENCE)


def fails(pb, code, call, *args):
    """The call fails, with this code in its detail."""
    try:
        call(*args, timeout=PATIENCE)
    except grpc.RpcError as error:
        detail = failure(pb, error)
        assert detail is not None and detail.code == code, (error.code(), detail)
        return detail
    raise AssertionError(f"{code} was expected")


def story(pb, admin, member):
    ada, bo = admin.GetMe(pb.GetMeRequest()), member.GetMe(pb.GetMeRequest())
    assert ada.account != bo.account and ada.node == bo.node

    # A space, a profile for somebody who is not in it yet, an invite that names it.
    space = admin.CreateSpace(pb.CreateSpaceRequest(name="Club"), timeout=PATIENCE).space
    profile = pb.ObjectRef(type="profile", id=bo.account)
    promised = pb.InviteOffer(space=space, must_see=[pb.TreeRef(object=profile)], label="for Bo")
    invite = admin.CreateInvite(pb.CreateInviteRequest(offers=[promised]), timeout=PATIENCE)
    shown = member.ShowInvite(pb.ShowInviteRequest(token=invite.token))
    assert [s.space for s in shown.spaces] == [space] and shown.inviter == ada.account

    # The token goes out first, the profile is written later (S02).
    events = admin.Events(pb.EventsRequest(space=space), timeout=PATIENCE)
    assert next(events).WhichOneof("event") == "listening"
    joining = member.Join(pb.JoinRequest(token=invite.token, timeout_ms=PATIENCE_MS), timeout=PATIENCE)
    asked = next(e.join_requested for e in events if e.WhichOneof("event") == "join_requested")
    assert asked.account == bo.account
    events.cancel()
    welcome = pb.PreparedPut(
        type="profile", id=bo.account, fields_json=json.dumps({"title": "New here", "number": BIG})
    )
    admin.Approve(
        pb.ApproveRequest(space=space, account=bo.account, role=pb.ROLE_WRITER, prepare=[pb.Prepared(put=welcome)]),
        timeout=PATIENCE,
    )
    steps = list(joining)
    stages = {join.stage for step in steps[:-1] for join in step.progress.joins}
    assert pb.JOIN_STAGE_REQUESTED in stages, steps
    assert [s.space for s in steps[-1].ready.spaces] == [space], steps[-1]
    assert steps[-1].ready.spaces[0].role == pb.ROLE_WRITER

    # Ready means that it can be read (S01), to the last digit.
    own = pb.GetObjectRequest(space=space, type="profile", id=bo.account)
    assert fields(member.GetObject(own)) == {"title": "New here", "number": BIG}
    receipt = synced(member, pb, space)
    assert receipt.durable and member.VerifyReceipt(pb.VerifyReceiptRequest(text=receipt.text)).seq == receipt.seq

    # An update after the grant comes by event; what it does not name stays (S05).
    watch = member.WatchObjects(pb.WatchObjectsRequest(space=space, type="profile"), timeout=PATIENCE)
    assert next(watch).WhichOneof("change") == "watching"
    put(admin, pb, space, "profile", bo.account, title="At home")
    changed = next(c.changed for c in watch if c.WhichOneof("change") == "changed")
    assert fields(changed) == {"title": "At home", "number": BIG}
    watch.cancel()

    # An object that nobody has written yet is waited for, and comes.
    waiting = member.AwaitObject(
        pb.AwaitObjectRequest(space=space, type="note", id="hi", patience=pb.Patience(timeout_ms=PATIENCE_MS)),
        timeout=PATIENCE,
    )
    write = put(admin, pb, space, "note", "hi", text="Hello").write
    durable = list(admin.AwaitDurable(pb.AwaitDurableRequest(space=space, write=write), timeout=PATIENCE))[-1]
    assert durable.settled.receipt.durable, durable
    assert fields(list(waiting)[-1].object) == {"text": "Hello"}
    never = pb.AwaitObjectRequest(space=space, type="note", id="never", patience=pb.Patience(timeout_ms=200))
    failed = list(member.AwaitObject(never, timeout=PATIENCE))[-1].failed
    assert failed.code == "DEADLINE_EXCEEDED" and failed.residue, failed

    # What a member wrote, its admin reads from a cursor on: each once.
    put(member, pb, space, "note", "back", text="Hello yourself")
    logged = admin.Events(pb.EventsRequest(space=space, cursor="start"), timeout=PATIENCE)
    told = []
    for event in logged:
        told.append(event)
        if event.WhichOneof("event") == "object" and event.object.id == "back":
            break
    logged.cancel()
    assert [e.member_joined.account for e in told if e.WhichOneof("event") == "member_joined"] == [bo.account]
    again = admin.Events(pb.EventsRequest(space=space, cursor=told[-2].cursor), timeout=PATIENCE)
    assert next(again).WhichOneof("event") == "listening"
    assert next(again).object.id == "back"
    again.cancel()

    # Both lists are the same, in pages of one.
    for stub in (admin, member):
        notes, token = [], ""
        while True:
            page = stub.ListObjects(
                pb.ListObjectsRequest(space=space, type="note", page_size=1, page_token=token), timeout=PATIENCE
            )
            notes += [(note.id, fields(note)) for note in page.objects]
            token = page.next_page_token
            if not token:
                break
        # In the order of their trees, which is the same for all and says nothing.
        assert sorted(notes) == [("back", {"text": "Hello yourself"}), ("hi", {"text": "Hello"})], notes
    members = admin.ListMembers(pb.ListMembersRequest(space=space)).members
    assert {m.account: m.role for m in members} == {ada.account: pb.ROLE_OWNER, bo.account: pb.ROLE_WRITER}
    assert synced(admin, pb, space).chain == synced(member, pb, space).chain
    assert list(admin.ExplainSync(pb.ExplainSyncRequest(space=space)).reasons) == []

    # What would be rounded is refused by name, and not rounded; a counter counts.
    put_big = pb.PutObjectRequest(space=space, type="note", id="hi", fields_json=json.dumps({"n": ROUNDED}))
    fails(pb, "INEXACT_NUMBER", admin.PutObject, put_big)
    count = pb.UpdateObjectRequest(space=space, type="note", id="hi", ops=[pb.Op(field="read", increment=2)])
    admin.UpdateObject(count, timeout=PATIENCE)
    member.UpdateObject(count, timeout=PATIENCE)
    synced(member, pb, space), synced(admin, pb, space)
    assert fields(admin.GetObject(pb.GetObjectRequest(space=space, type="note", id="hi")))["read"] == 4

    # Failures have codes.
    fails(pb, "NO_SUCH_OBJECT", admin.GetObject, pb.GetObjectRequest(space=space, type="note", id="none"))
    wrong = fails(pb, "BAD_REQUEST", admin.GetObject, pb.GetObjectRequest(space="space_x", type="note", id="none"))
    assert wrong.subject == "space"
    role = pb.ChangeRole(account=bo.account, role=pb.ROLE_READER)
    change = pb.AclChange(change_role=role)
    assert [e.role.to for e in admin.PlanAcl(pb.PlanAclRequest(space=space, change=change)).effects] == [pb.ROLE_READER]
    admin.ChangeAcl(pb.ChangeAclRequest(space=space, change=change), timeout=PATIENCE)
    synced(member, pb, space)
    note = pb.PutObjectRequest(space=space, type="note", id="late", fields_json="{}")
    fails(pb, "NOT_A_WRITER", member.PutObject, note)


def joined(stub, pb, token):
    """Joins with a token of an open invite; the spaces that are ready."""
    steps = list(stub.Join(pb.JoinRequest(token=token, timeout_ms=PATIENCE_MS), timeout=PATIENCE))
    assert steps[-1].WhichOneof("step") == "ready", steps[-1]
    return [s.space for s in steps[-1].ready.spaces]


def made(stub, pb, name):
    return stub.CreateSpace(pb.CreateSpaceRequest(name=name), timeout=PATIENCE).space


def invited(stub, pb, *offers):
    """An open invite, which lets everybody in who holds its token."""
    return stub.CreateInvite(pb.CreateInviteRequest(offers=offers), timeout=PATIENCE).token


def listed(stub, pb, space, kind):
    request = pb.ListObjectsRequest(space=space, type=kind, page_size=1000)
    return {o.id: fields(o) for o in stub.ListObjects(request, timeout=PATIENCE).objects}


def offer(pb, space, **more):
    return pb.InviteOffer(space=space, role=pb.ROLE_WRITER, mode=pb.INVITE_MODE_OPEN, **more)


def races(pb, admin, member, bo):
    """The profile is written while its owner joins (S03): it comes, and there is one of it."""
    for n in range(10):
        space = made(admin, pb, f"Race {n}")
        token = invited(admin, pb, offer(pb, space))
        with concurrent.futures.ThreadPoolExecutor() as threads:
            join = threads.submit(joined, member, pb, token)
            written = threads.submit(put, admin, pb, space, "profile", bo, n=n)
            assert join.result() == [space] and written.result().write
        waiting = member.AwaitObject(
            pb.AwaitObjectRequest(space=space, type="profile", id=bo, patience=pb.Patience(timeout_ms=PATIENCE_MS)),
            timeout=PATIENCE,
        )
        assert fields(list(waiting)[-1].object) == {"n": n}
        synced(member, pb, space)
        assert listed(member, pb, space, "profile") == {bo: {"n": n}}


def all_but_mine(pb, admin, member, bo):
    """200 profiles, one's own the last (S06): await_synced brings 201."""
    space = made(admin, pb, "Crowd")
    for n in range(200):
        put(admin, pb, space, "profile", f"somebody-{n}", n=n)
    token = invited(admin, pb, offer(pb, space))
    assert joined(member, pb, token) == [space]
    write = put(admin, pb, space, "profile", bo, mine=True).write
    assert list(admin.AwaitDurable(pb.AwaitDurableRequest(space=space, write=write), timeout=PATIENCE))[-1].settled
    synced(member, pb, space)
    profiles = listed(member, pb, space, "profile")
    assert len(profiles) == 201 and profiles[bo] == {"mine": True}


def two_spaces(pb, admin, member, bo):
    """One token, two spaces (S07)."""
    spaces = [made(admin, pb, name) for name in ("Here", "There")]
    for space in spaces:
        put(admin, pb, space, "profile", bo, where=space)
    must_see = [pb.TreeRef(object=pb.ObjectRef(type="profile", id=bo))]
    token = invited(admin, pb, *(offer(pb, space, must_see=must_see) for space in spaces))
    assert sorted(joined(member, pb, token)) == sorted(spaces)
    for space in spaces:
        assert listed(member, pb, space, "profile") == {bo: {"where": space}}
    assert sorted(joined(member, pb, token)) == sorted(spaces), "the same account may use it again"


def six_orders(pb, admin, member, bo):
    """A type, a profile and a credential, in all six orders (S08): one state."""
    objects = [("type", "member", {"fields": 2}), ("profile", bo, {"type": "member"}), ("credential", bo, {"by": "Ada"})]
    for order in itertools.permutations(objects):
        space = made(admin, pb, "Order")
        token = invited(admin, pb, offer(pb, space))
        for kind, name, values in order[:2]:
            put(admin, pb, space, kind, name, **values)
        assert joined(member, pb, token) == [space]
        kind, name, values = order[2]
        put(admin, pb, space, kind, name, **values)
        synced(admin, pb, space), synced(member, pb, space)
        for stub in (admin, member):
            for kind, name, values in objects:
                assert listed(stub, pb, space, kind) == {name: values}, (order, kind)


def main():
    protos, *data = (pathlib.Path(arg) for arg in sys.argv[1:4])
    with tempfile.TemporaryDirectory() as generated:
        pb, stubs = generate(protos, pathlib.Path(generated))
        with connect(pb, stubs, data[0]) as first, connect(pb, stubs, data[1]) as second:
            admin, member = stubs.ClientStub(first), stubs.ClientStub(second)
            story(pb, admin, member)
            bo = member.GetMe(pb.GetMeRequest()).account
            for chapter in (races, all_but_mine, two_spaces, six_orders):
                chapter(pb, admin, member, bo)
    print("the seed story holds")


if __name__ == "__main__":
    main()
