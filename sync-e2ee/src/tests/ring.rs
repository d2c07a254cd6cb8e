use bytes::Bytes;
use proptest::prelude::*;
use sync_core::ids::{AccountId, AclId, Epoch};
use sync_core::record::{
    AclContent, AclRecord, AclRoot, CreateInvite, InviteMode, JoinClaim, Role, Rotation, Seal, SpaceOptions,
};

use super::*;
use crate::HistoryAccess::{WithHistory, WithoutHistory};
use crate::{HistoryAccess, InviteSecret, KeyError, KeyRing, Recipient, make_rotation, seal_keys};

type Published = ([u8; 32], [u8; 32]);

/// A space by its owner, as its log would tell it: every record, with the epoch before it.
struct World {
    owner: AccountKeys,
    root: AclRoot,
    records: Vec<(AclRecord, Epoch)>,
    keys: Vec<SpaceKeys>,
    published: Vec<Published>,
    seed: u64,
}

impl World {
    fn new() -> Self {
        let owner = alice();
        let keys = SpaceKeys::generate(&mut rng(100));
        let seal = seal_keys(None, Epoch(0), Recipient::Account(owner.id()), &keys, &mut rng(101)).unwrap();
        let root = root_of(&owner, &keys, vec![seal]);
        let published = vec![(root.key_id, root.history_id)];
        Self { owner, root, records: Vec::new(), keys: vec![keys], published, seed: 200 }
    }

    fn epoch(&self) -> Epoch {
        Epoch(u32::try_from(self.keys.len() - 1).unwrap())
    }

    fn newest(&self) -> &SpaceKeys {
        self.keys.last().unwrap()
    }

    fn seal(&mut self, to: Recipient, access: HistoryAccess) -> Seal {
        self.seal_keys(to, &given(self.newest(), access))
    }

    fn seal_keys(&mut self, to: Recipient, keys: &SpaceKeys) -> Seal {
        self.seed += 1;
        seal_keys(Some(SPACE), self.epoch(), to, keys, &mut rng(self.seed)).unwrap()
    }

    fn push(&mut self, contents: Vec<AclContent>) {
        let epoch = self.epoch();
        self.push_at(contents, epoch);
    }

    fn push_at(&mut self, contents: Vec<AclContent>, epoch_before: Epoch) {
        let record = AclRecord {
            space: SPACE,
            prev: AclId::from_hash([0; 32]),
            index: 2,
            author: self.owner.id(),
            at_ms: 0,
            seen: None,
            contents,
        };
        self.records.push((record, epoch_before));
    }

    fn add(&mut self, account: &AccountKeys, role: Role, access: HistoryAccess) {
        let seal = self.seal(Recipient::Account(account.id()), access);
        self.push(vec![AclContent::AddMembers { members: vec![(account.id(), role, seal)] }]);
    }

    /// A rotation, already counted as the newest epoch and not yet in the log.
    fn make_rotation(&mut self, members: &[(&AccountKeys, HistoryAccess)]) -> Rotation {
        let members: Vec<(AccountId, HistoryAccess)> =
            members.iter().map(|(keys, access)| (keys.id(), *access)).collect();
        self.seed += 1;
        let (rotation, keys) =
            make_rotation(SPACE, (self.epoch(), self.newest()), &members, &mut rng(self.seed)).unwrap();
        self.keys.push(keys);
        self.published.push((rotation.key_id, rotation.history_id));
        rotation
    }

    fn rotate(&mut self, members: &[(&AccountKeys, HistoryAccess)]) {
        let before = self.epoch();
        let rotation = self.make_rotation(members);
        self.push_at(vec![AclContent::RotateKey { rotation }], before);
    }

    fn absorb_into(&self, ring: &mut KeyRing) -> Vec<KeyError> {
        let published = |epoch: Epoch| self.published.get(epoch.0 as usize).copied();
        let mut errors: Vec<KeyError> = ring.absorb_root(&self.root).err().into_iter().collect();
        for (record, epoch) in &self.records {
            errors.extend(ring.absorb(record, *epoch, &published).err());
        }
        errors
    }

    fn ring_of(&self, account: &AccountKeys) -> (KeyRing, Vec<KeyError>) {
        let mut ring = KeyRing::new(account.clone());
        let errors = self.absorb_into(&mut ring);
        (ring, errors)
    }

    /// The account reads exactly these epochs, and their keys are the true ones.
    fn check(&self, account: &AccountKeys, epochs: &[u32]) {
        let (ring, errors) = self.ring_of(account);
        assert_eq!(errors, []);
        self.check_ring(&ring, epochs);
    }

    fn check_ring(&self, ring: &KeyRing, epochs: &[u32]) {
        for (epoch, keys) in (0..).zip(&self.keys) {
            assert_eq!(ring.holds(Epoch(epoch)), epochs.contains(&epoch), "epoch {epoch}");
            if let Some(held) = ring.keys(Epoch(epoch)) {
                assert_eq!(held.key_id(), keys.key_id());
                assert!(held.name_key.is(&keys.name_key));
            }
        }
        assert_eq!(ring.newest().map(|(epoch, _)| epoch.0), epochs.iter().max().copied());
        assert_eq!(ring.name_key().is_some(), !epochs.is_empty());
    }
}

fn root_of(owner: &AccountKeys, keys: &SpaceKeys, seals: Vec<Seal>) -> AclRoot {
    AclRoot {
        owner: owner.id(),
        options: SpaceOptions::default(),
        key_id: keys.key_id(),
        history_id: keys.history_id().unwrap(),
        profile_key: keys.profile_public(),
        seals,
    }
}

fn given(keys: &SpaceKeys, access: HistoryAccess) -> SpaceKeys {
    match access {
        WithHistory => keys.clone(),
        WithoutHistory => keys.without_history(),
    }
}

fn claim(invite: &InviteSecret, account: &AccountKeys) -> JoinClaim {
    JoinClaim {
        invite: invite.id(),
        account: account.id(),
        role: Role::Writer,
        proof: Bytes::from_static(&[0; 64]),
        profile_ct: Bytes::new(),
    }
}

fn open_invite(secret: &InviteSecret, seals: Vec<Seal>) -> CreateInvite {
    CreateInvite {
        key: secret.id(),
        mode: InviteMode::Open,
        role: Role::Writer,
        expires_ms: None,
        max_uses: None,
        seals,
        must_see: Vec::new(),
        requires: Vec::new(),
        label_ct: Bytes::new(),
    }
}

#[test]
fn the_owner_holds_the_root_and_a_stranger_nothing() {
    let world = World::new();
    world.check(&alice(), &[0]);
    world.check(&someone(1), &[]);
}

#[test]
fn a_member_with_history_reads_back_to_the_start() {
    let mut world = World::new();
    let bob = someone(1);
    for _ in 0..4 {
        world.rotate(&[(&alice(), WithHistory)]);
    }
    world.check(&bob, &[]);
    world.add(&bob, Role::Writer, WithHistory);
    world.check(&bob, &[0, 1, 2, 3, 4]);
    world.rotate(&[(&alice(), WithHistory), (&bob, WithHistory)]);
    world.check(&bob, &[0, 1, 2, 3, 4, 5]);
    world.check(&alice(), &[0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_member_without_history_reads_from_the_join() {
    let mut world = World::new();
    let bob = someone(1);
    world.rotate(&[(&alice(), WithHistory)]);
    world.add(&bob, Role::Guest, WithoutHistory);
    world.rotate(&[(&alice(), WithHistory), (&bob, WithoutHistory)]);
    world.check(&bob, &[1, 2]);
}

#[test]
fn a_guest_lifted_to_reader_gets_the_history() {
    let mut world = World::new();
    let bob = someone(1);
    world.rotate(&[(&alice(), WithHistory)]);
    world.add(&bob, Role::Guest, WithoutHistory);
    world.rotate(&[(&alice(), WithHistory), (&bob, WithoutHistory)]);
    let seal = world.seal(Recipient::Account(bob.id()), WithHistory);
    world.push(vec![AclContent::ChangeRole { account: bob.id(), role: Role::Reader, seal: Some(seal) }]);
    world.check(&bob, &[0, 1, 2]);
    // Later keys without history do not take the better ones away.
    let seal = world.seal(Recipient::Account(bob.id()), WithoutHistory);
    world.push(vec![AclContent::ChangeRole { account: bob.id(), role: Role::Guest, seal: Some(seal) }]);
    let (ring, _) = world.ring_of(&bob);
    assert!(ring.newest().unwrap().1.history_key.is_some());
}

#[test]
fn the_removed_read_no_further() {
    let mut world = World::new();
    let bob = someone(1);
    world.add(&bob, Role::Writer, WithHistory);
    let before = world.epoch();
    let rotation = world.make_rotation(&[(&alice(), WithHistory)]);
    world.push_at(vec![AclContent::RemoveMembers { accounts: vec![bob.id()], rotation }], before);
    world.check(&bob, &[0]);
    world.check(&alice(), &[0, 1]);
}

/// Everything after a rotation in one record is of the new epoch, also when the caller's state is still the old one.
#[test]
fn a_record_that_rotates_and_then_adds() {
    let mut world = World::new();
    let (bob, carol) = (someone(1), someone(2));
    world.add(&bob, Role::Writer, WithHistory);
    let before = world.epoch();
    let rotation = world.make_rotation(&[(&alice(), WithHistory)]);
    let seal = world.seal(Recipient::Account(carol.id()), WithHistory);
    let contents = vec![
        AclContent::RemoveMembers { accounts: vec![bob.id()], rotation },
        AclContent::AddMembers { members: vec![(carol.id(), Role::Writer, seal)] },
    ];
    world.push_at(contents, before);
    let mut ring = KeyRing::new(carol);
    ring.absorb_root(&world.root).unwrap();
    for (record, epoch) in &world.records {
        let known_before = |asked: Epoch| (asked <= *epoch).then(|| world.published[asked.0 as usize]);
        ring.absorb(record, *epoch, &known_before).unwrap();
    }
    world.check_ring(&ring, &[0, 1]);
}

#[test]
fn joining_by_any_way_gives_keys() {
    let mut world = World::new();
    let (bob, carol, invite) = (someone(1), someone(2), InviteSecret::generate(&mut rng(3)));
    world.rotate(&[(&alice(), WithHistory)]);
    let seals = vec![world.seal(Recipient::Account(bob.id()), WithHistory)];
    world.push(vec![AclContent::JoinByInvite { claim: claim(&invite, &bob), seals }]);
    world.push(vec![AclContent::RequestJoin { claim: claim(&invite, &carol) }]);
    let seals = vec![world.seal(Recipient::Account(carol.id()), WithoutHistory)];
    let request = AclId::from_hash([1; 32]);
    world.push(vec![AclContent::AcceptJoin { request, role: Role::Writer, seals, frontier: Vec::new() }]);
    world.check(&bob, &[0, 1]);
    world.check(&carol, &[1]);
}

#[test]
fn a_joiner_gives_keys_to_nobody_else() {
    let mut world = World::new();
    let (bob, mallory, invite) = (someone(1), someone(2), InviteSecret::generate(&mut rng(3)));
    let lie = SpaceKeys { name_key: fixed_keys().name_key, ..world.newest().clone() };
    let seals = vec![world.seal_keys(Recipient::Account(bob.id()), &lie)];
    world.push(vec![AclContent::JoinByInvite { claim: claim(&invite, &mallory), seals }]);
    world.check(&bob, &[]);
    world.add(&bob, Role::Writer, WithHistory);
    world.check(&bob, &[0]);
}

#[test]
fn an_open_invite_reads_before_the_join_and_follows_rotations() {
    let mut world = World::new();
    let (bob, secret) = (someone(1), InviteSecret::generate(&mut rng(3)));
    world.rotate(&[(&alice(), WithHistory)]);
    let seals = vec![world.seal(Recipient::Invite(secret.id()), WithHistory)];
    let invite = open_invite(&secret, seals);
    world.push(vec![AclContent::CreateInvite(invite.clone())]);
    world.check(&bob, &[]);

    // At the invite's place in the log.
    let (mut ring, _) = world.ring_of(&bob);
    ring.absorb_open_invite(SPACE, &invite, &secret, Epoch(1), world.published[1]).unwrap();
    world.check_ring(&ring, &[0, 1]);

    // Before the log: whatever is sealed to the invite is taken on the way.
    let before = world.epoch();
    let mut rotation = world.make_rotation(&[(&alice(), WithHistory)]);
    rotation.invite_seals = vec![world.seal(Recipient::Invite(secret.id()), WithHistory)];
    let other = InviteSecret::generate(&mut rng(4)).id();
    world.push_at(vec![AclContent::RevokeInvite { invite: other, rotation: Some(rotation) }], before);
    let mut ring = KeyRing::new(bob.clone());
    ring.absorb_open_invite(SPACE, &invite, &secret, Epoch(1), world.published[1]).unwrap();
    assert_eq!(world.absorb_into(&mut ring), []);
    world.check_ring(&ring, &[0, 1, 2]);

    let wrong = InviteSecret::generate(&mut rng(5));
    let result = ring.absorb_open_invite(SPACE, &invite, &wrong, Epoch(1), world.published[1]);
    assert_eq!(result, Err(KeyError::WrongInvite));
}

#[test]
fn absorbing_twice_changes_nothing() {
    let mut world = World::new();
    world.rotate(&[(&alice(), WithHistory)]);
    let (mut ring, _) = world.ring_of(&alice());
    assert_eq!(world.absorb_into(&mut ring), []);
    world.check_ring(&ring, &[0, 1]);
}

#[test]
fn a_derived_space_needs_no_seals() {
    let keys = SpaceKeys::derived(&alice(), b"account");
    let root = root_of(&alice(), &keys, Vec::new());
    let mut ring = KeyRing::new(alice());
    ring.absorb_derived_root(&root, b"account").unwrap();
    assert_same(ring.keys(Epoch(0)).unwrap(), &keys);
    let bad = Err(KeyError::BadSeal { epoch: Epoch(0) });
    assert_eq!(KeyRing::new(alice()).absorb_derived_root(&root, b"other"), bad);
    assert_eq!(KeyRing::new(someone(1)).absorb_derived_root(&root, b"account"), bad);
    let root = AclRoot { profile_key: fixed_keys().profile_public(), ..root };
    assert_eq!(KeyRing::new(alice()).absorb_derived_root(&root, b"account"), bad);
}

#[test]
fn wrong_keys_in_a_seal_are_found_out_and_resealed() {
    let mut world = World::new();
    let (bob, true_keys) = (someone(1), world.newest().clone());
    let wrong_read = SpaceKeys { read_key: fixed_keys().read_key, ..true_keys.clone() };
    let wrong_history = SpaceKeys { history_key: fixed_keys().history_key, ..true_keys.clone() };
    let elsewhere = seal_keys(Some(SPACE), Epoch(5), Recipient::Account(bob.id()), &true_keys, &mut rng(8)).unwrap();
    for seal in [
        world.seal_keys(Recipient::Account(bob.id()), &wrong_read),
        world.seal_keys(Recipient::Account(bob.id()), &wrong_read.without_history()),
        world.seal_keys(Recipient::Account(bob.id()), &wrong_history),
        elsewhere,
    ] {
        world.records.clear();
        world.push(vec![AclContent::AddMembers { members: vec![(bob.id(), Role::Writer, seal)] }]);
        let (ring, errors) = world.ring_of(&bob);
        assert_eq!(errors, [KeyError::BadSeal { epoch: Epoch(0) }]);
        world.check_ring(&ring, &[]);
        let seal = world.seal(Recipient::Account(bob.id()), WithHistory);
        world.push(vec![AclContent::Reseal { account: bob.id(), epoch: Epoch(0), seal }]);
        let (ring, errors) = world.ring_of(&bob);
        assert_eq!(errors, [KeyError::BadSeal { epoch: Epoch(0) }]);
        world.check_ring(&ring, &[0]);
    }
}

#[test]
fn a_profile_key_that_is_not_of_the_epoch_is_found_out_where_the_epoch_begins() {
    let lie = fixed_keys().profile_public();
    let mut world = World::new();
    let truth = std::mem::replace(&mut world.root.profile_key, lie);
    let (ring, errors) = world.ring_of(&alice());
    assert_eq!(errors, [KeyError::BadSeal { epoch: Epoch(0) }]);
    world.check_ring(&ring, &[]);
    world.root.profile_key = truth;

    let (bob, secret) = (someone(1), InviteSecret::generate(&mut rng(3)));
    world.add(&bob, Role::Guest, WithoutHistory);
    let mut rotation = world.make_rotation(&[(&alice(), WithHistory), (&bob, WithoutHistory)]);
    rotation.profile_key = lie;
    rotation.invite_seals = vec![world.seal(Recipient::Invite(secret.id()), WithHistory)];
    world.push_at(vec![AclContent::RotateKey { rotation }], Epoch(0));
    for account in [alice(), bob.clone()] {
        let (ring, errors) = world.ring_of(&account);
        assert_eq!(errors, [KeyError::BadSeal { epoch: Epoch(1) }]);
        world.check_ring(&ring, &[0]);
    }
    let mut ring = KeyRing::new(someone(2));
    ring.hold_invite(secret);
    assert_eq!(world.absorb_into(&mut ring), [KeyError::BadSeal { epoch: Epoch(1) }]);
    world.check_ring(&ring, &[]);

    // The read key itself is the one of the epoch: a reseal gives it, and nothing that was written is lost.
    let seal = world.seal(Recipient::Account(bob.id()), WithoutHistory);
    world.push(vec![AclContent::Reseal { account: bob.id(), epoch: Epoch(1), seal }]);
    let (ring, _) = world.ring_of(&bob);
    world.check_ring(&ring, &[0, 1]);
}

#[test]
fn an_error_loses_no_key_of_the_same_record() {
    let mut world = World::new();
    let bob = someone(1);
    let bad = world.seal_keys(Recipient::Account(bob.id()), &SpaceKeys::generate(&mut rng(9)));
    let good = world.seal(Recipient::Account(bob.id()), WithHistory);
    let add = |seal| AclContent::AddMembers { members: vec![(bob.id(), Role::Writer, seal)] };
    world.push(vec![add(bad), add(good)]);
    let (ring, errors) = world.ring_of(&bob);
    assert_eq!(errors, [KeyError::BadSeal { epoch: Epoch(0) }]);
    world.check_ring(&ring, &[0]);
}

/// Found out at once, also by those who hold the old keys: a member who comes later would miss them.
#[test]
fn a_broken_chain_is_found_out_by_everybody() {
    let bob = someone(1);
    let break_chain: [fn(&SpaceKeys, &mut Rotation); 4] = [
        |_, rotation| {
            rotation.chain_ct = Bytes::from([&[rotation.chain_ct[0] ^ 1], &rotation.chain_ct[1..]].concat());
        },
        |_, rotation| rotation.chain_nonce = Bytes::from_static(&[0; 24]),
        |_, rotation| rotation.chain_ct = Bytes::new(),
        |old, rotation| {
            // Authentic, and other keys than the log published.
            let lie = SpaceKeys { name_key: old.name_key.clone(), ..fixed_keys() };
            let members = [(alice().id(), WithHistory), (someone(1).id(), WithoutHistory)];
            (*rotation, _) = make_rotation(SPACE, (Epoch(0), &lie), &members, &mut rng(9)).unwrap();
        },
    ];
    for break_it in break_chain {
        let mut world = World::new();
        world.add(&bob, Role::Guest, WithoutHistory);
        let mut rotation = world.make_rotation(&[(&alice(), WithHistory), (&bob, WithoutHistory)]);
        break_it(&world.keys[0], &mut rotation);
        world.published[1] = (rotation.key_id, rotation.history_id);
        world.push_at(vec![AclContent::RotateKey { rotation }], Epoch(0));
        let (ring, errors) = world.ring_of(&alice());
        assert_eq!(errors, [KeyError::BadSeal { epoch: Epoch(1) }]);
        assert!(ring.holds(Epoch(0)) && ring.holds(Epoch(1)));
        assert_eq!(ring.keys(Epoch(0)).unwrap().key_id(), world.keys[0].key_id());
        // Who has no history has nothing to check.
        let (_, errors) = world.ring_of(&bob);
        assert_eq!(errors, []);
    }
}

#[test]
fn a_rotator_without_history_ends_the_chain_and_nothing_else() {
    let mut world = World::new();
    let (bob, carol) = (someone(1), someone(2));
    world.rotate(&[(&alice(), WithHistory)]);
    world.add(&bob, Role::Admin, WithoutHistory);
    let old = world.newest().without_history();
    let members = [(alice().id(), WithHistory), (bob.id(), WithHistory)];
    let (rotation, keys) = make_rotation(SPACE, (Epoch(1), &old), &members, &mut rng(9)).unwrap();
    world.keys.push(keys);
    world.published.push((rotation.key_id, rotation.history_id));
    world.push_at(vec![AclContent::RotateKey { rotation }], Epoch(1));
    world.add(&carol, Role::Writer, WithHistory);
    world.check(&alice(), &[0, 1, 2]);
    world.check(&bob, &[1, 2]);
    world.check(&carol, &[1, 2]);
}

#[test]
fn a_wrong_name_key_is_told_and_repaired_by_a_reseal() {
    let mut world = World::new();
    let bob = someone(1);
    let lie = SpaceKeys { name_key: fixed_keys().name_key, ..world.newest().clone() };
    let seal = world.seal_keys(Recipient::Account(bob.id()), &lie);
    world.push(vec![AclContent::AddMembers { members: vec![(bob.id(), Role::Writer, seal)] }]);
    world.rotate(&[(&alice(), WithHistory), (&bob, WithHistory)]);
    let (ring, errors) = world.ring_of(&bob);
    assert_eq!(errors, [KeyError::NameKeyDiffers { epoch: Epoch(1) }]);
    assert!(ring.holds(Epoch(1)));
    assert!(ring.name_key().unwrap().is(&fixed_keys().name_key));

    let seal = world.seal(Recipient::Account(bob.id()), WithHistory);
    world.push(vec![AclContent::Reseal { account: bob.id(), epoch: Epoch(1), seal }]);
    let (ring, _) = world.ring_of(&bob);
    world.check_ring(&ring, &[0, 1]);
    assert!(ring.name_key().unwrap().is(&world.keys[0].name_key));
}

#[test]
fn an_epoch_that_the_caller_does_not_know_is_named() {
    let mut world = World::new();
    world.add(&someone(1), Role::Writer, WithHistory);
    let (record, epoch) = &world.records[0];
    let unknown = Err(KeyError::UnknownEpoch { epoch: Epoch(0) });
    assert_eq!(KeyRing::new(someone(1)).absorb(record, *epoch, &|_| None), unknown);

    // A ring that missed the root has no ids to check the end of the chain against.
    world.records.clear();
    world.rotate(&[(&alice(), WithHistory)]);
    let secret = InviteSecret::generate(&mut rng(3));
    let invite = open_invite(&secret, vec![world.seal(Recipient::Invite(secret.id()), WithHistory)]);
    let mut ring = KeyRing::new(someone(1));
    ring.absorb(&world.records[0].0, Epoch(0), &|_| None).unwrap();
    assert_eq!(ring.absorb_open_invite(SPACE, &invite, &secret, Epoch(1), world.published[1]), unknown);
    world.check_ring(&ring, &[1]);
}

#[test]
fn a_rotation_publishes_what_it_seals() {
    let old = SpaceKeys::generate(&mut rng(1));
    let members = [(alice().id(), WithHistory), (someone(1).id(), WithoutHistory)];
    let (rotation, keys) = make_rotation(SPACE, (Epoch(3), &old), &members, &mut rng(2)).unwrap();
    assert_eq!(rotation.epoch, Epoch(4));
    assert_eq!(rotation.key_id, keys.key_id());
    assert_eq!(Some(rotation.history_id), keys.history_id());
    assert_eq!(rotation.profile_key, keys.profile_public());
    assert_eq!((rotation.chain_nonce.len(), rotation.chain_ct.len()), (24, 80));
    assert!(keys.name_key.is(&old.name_key));
    assert_ne!(keys.key_id(), old.key_id());
    let recipients: Vec<_> = rotation.seals.iter().map(|seal| seal.recipient).collect();
    assert_eq!(recipients, members.map(|(account, _)| *account.as_bytes()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_changed_byte_of_what_is_ours_is_refused(at: prop::sample::Index, mask in 1..=255_u8) {
        let mut world = World::new();
        let mut rotation = world.make_rotation(&[(&alice(), WithHistory)]);
        let seal = &mut rotation.seals[0];
        let mut bytes = [&seal.enc[..], &seal.ciphertext, &rotation.chain_nonce, &rotation.chain_ct].concat();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        let bytes = Bytes::from(bytes);
        (seal.enc, seal.ciphertext) = (bytes.slice(..32), bytes.slice(32..144));
        (rotation.chain_nonce, rotation.chain_ct) = (bytes.slice(144..168), bytes.slice(168..));
        world.push_at(vec![AclContent::RotateKey { rotation }], Epoch(0));
        let (ring, errors) = world.ring_of(&alice());
        prop_assert_eq!(errors, vec![KeyError::BadSeal { epoch: Epoch(1) }]);
        prop_assert!(ring.holds(Epoch(0)));
        prop_assert_eq!(ring.holds(Epoch(1)), at >= 144);
    }
}
