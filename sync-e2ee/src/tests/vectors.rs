//! Known answers: what other implementations say. `vectors.py` computed all that is ours.

use bytes::Bytes;
use sync_core::ids::{Epoch, TreeId};
use sync_core::record::{ChangeKind, Seal};

use super::*;
use crate::{ContentContext, DeviceKeys, Envelope, LocalKey, Secrets, Unlock};

const SEED: &str = concat!(
    "408b285c123836004f4b8842c89324c1f01382450c0d439af345ba7fc49acf705489c6fc77dbd4e3dc1dd8cc6bc9f043",
    "db8ada1e243c4a0eafb290d399480840",
);
const ACCOUNT_SECRET: &str = "32ddbda3088fd42837a24ab722dbf31a8790c260c06a2a63b26f6534c872fcb6";
const ACCOUNT: &str = "7273e8f5e2bdc343f8b048f7c39057bd770b48e2d83c149812c6dd003c2c4f57";
const KEY_ID: &str = "3adad2cd0a3315555533f860f6db07274e305efe52931ff02597e412f6ef59c4";
const HISTORY_ID: &str = "8d0e96ed6422cda5319d387542f8d6a4b33c373522e025a8e31990aab991ff49";
const PROFILE_PUBLIC: &str = "9b5f62ffea8f6572bf14e1604897c18aa4bf6a461534b46f9eae5f5c48f74943";
const DERIVED_KEYS: &str = concat!(
    "f4ded158a3445b3804da8f53e229606e94ee57f7df90fe6feaf4ff55293c0ca5920f9395aa5b17a70640fec1001c6707",
    "f58bd20f2e933e704d061cabb574da43271fc051204de3e5b450367cec3085ad0c1911e938af749b432941fcedf03286",
);
const SEAL: &str = concat!(
    "5ad73d54eb9c0022f4661e59c96a6824732fed03bcc135ace77b06ad4514b91a32be5c33afafdc896253fd3cc689c7ee",
    "86d30df9fae8861f6145098a7cd060e32db30a7a6dc5cc76d564366f3b108d19a966734b47ab800870324bd7be0e8bfd",
    "21ab2e0e2501a91129d8fd8930232bb3d1f4c919f7fa3bab349779b2900e8d9b6b68b93d6897d9d1b4e54a233585a994",
);
const ROOT_SEAL: &str = concat!(
    "ff10f719cda33ae87c3a6b82bbc6c16dd984d053e0b9e10409b2d810329d4a0a4a3ff82ac972c74fc101e1d88caf2e4e",
    "652c8068f5bf6eb7a1e092f71711693c4e8197c78f89ff1684e56b75ce353da85bfdcac6d579a232b07960ef06d83839",
    "7005211329c94c2327ee6d4cfcbf9027438024fc53f65fe6add224867532627bc24a86ee33153c95072e8e7a3e37fe10",
);
const PROFILE: &str = concat!(
    "d18d2da0f8f19bbe5ddd93aac797f6dd1d3b4e276d649bd4ae1f09a9987d1b434c666e606deeffc97ad0c4b2d2997f2d",
    "217c670805",
);
const NAME_TAG: &str = "d42675d4a15411b98319178711ad70fb01bda4fa26b78a6d64ad93b8887db3e3";
const CONTENT: &str = "8e39f1adae2cd6bede8fbc83be941a288246da00e628e3aa0aa65552fcdb50d4273515780667beb684e9cc62";
const CHAIN: &str = concat!(
    "8c0c75433193d8a8f9eb05a965fb60ba0109e3f51fa38ace44c0553771bc846a5a6b2c172e199ccf0e4858a9a36884c7",
    "9e7ca0f67059c0c439cee62f48faff362ca67790efac91d64dd37502b17b1ca1",
);
const VAULT: &str = concat!(
    "48575641554c54010200000000000000000000000008080808080808080808080808080808000102030405060708090a",
    "0b0c0d0e0f1011121314151617fa71c73afdc8ed1e8471ad29f9c7d6573701606d1b4d5e75e1dd9eef3574ba24c6376c",
    "6f7a21978192c22450893c1da0ceb15c907edb0fe87c09296bde3c0e3d068376f56be42de1700cea7210a19180ddd2c7",
    "879eb70c11049f67d3c23138e1f85542bdb61d63e8e1414be7fb358fc706760a93cbde50478b5dc27a0c139c7fb69570",
    "a7843d3077deeec17bf5bfc3a027953088873efa17dbb91e85934ff6b9a46ae4613d08839466efa1d016094b981f8896",
    "1eb1c61de63917b5443e7c8bb4d35fc5313de18ebadad0c17e928fd3e1dbfa2f96ab6d8c59f5a898fe024cc47d569958",
    "2aedcf9256124b01a295a31a3bbcc34120b962bb262ce40c6d03a1764aee2d0c7a0fffd5906f5a64eb4bd07302d1710f",
    "037edf9f441d2d7fa9efceac69254b7382c764e28f9da1822339d4b8927146",
);
const ROW: &str = "000102030405060708090a0b0c0d0e0f101112131415161768f36343746bed2b7b5a5900547c92095b171895";
const TAG: &str = "f9cfed93e747338768bbde761836188d";

/// <https://github.com/trezor/python-mnemonic/blob/master/vectors.json>, the last of 32 zero bytes; passphrase "TREZOR".
#[test]
fn bip39_vector() {
    let seed =
        bip39::Mnemonic::parse_in_normalized(bip39::Language::English, PHRASE).unwrap().to_seed_normalized("TREZOR");
    let expected = concat!(
        "bda85446c68413707090a52022edd26a1c9462295029f2e60cd7c4f2bbd30971",
        "70af7a4d73245cafa9c3cca8d561a7c3de6f5d4a10be8ed2a5e608d68f92fcc8"
    );
    assert_eq!(seed.as_slice(), hex(expected));
}

/// <https://github.com/satoshilabs/slips/blob/master/slip-0010.md#test-vector-1-for-ed25519>
#[test]
fn slip10_vector_1() {
    let seed = hex("000102030405060708090a0b0c0d0e0f");
    let check = |path: &[u32], expected: &str| {
        assert_eq!(slip10_ed25519::derive_ed25519_private_key(&seed, path).as_slice(), hex(expected), "{path:?}");
    };
    check(&[], "2b4be7f19ee27bbf30c667b642d5f4aa69fd169872f8fc3059c08ebae2eb19e7");
    check(&[0], "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3");
    check(&[0, 1], "b1d0bad404bf35da785a64ca1ac54b2617211d2777696fbffaf208f746ae84f2");
    check(&[0, 1, 2], "92a5b23c0b8a99e37d07df3fb9966917f5d06e02ddbd909c7e184371463e9fc9");
    check(&[0, 1, 2, 2], "30d1dc7e5fc04c31219ab25a27ae00b50f6fd66622f6e9c913253d6511d1e662");
    check(&[0, 1, 2, 2, 1_000_000_000], "8f94d394a8e8fd6b1bc2f3f49f5c47e385281d5c17e65324b0f62483e37e8793");
}

#[test]
fn an_account_is_its_words() {
    assert_eq!(Mnemonic::parse(PHRASE).unwrap().seed().as_slice(), hex(SEED));
    assert_eq!(alice().signing_key().as_bytes().as_slice(), hex(ACCOUNT_SECRET));
    assert_eq!(alice().id().as_bytes().as_slice(), hex(ACCOUNT));
}

#[test]
fn published_ids_and_derived_keys() {
    assert_eq!(fixed_keys().key_id().as_slice(), hex(KEY_ID));
    assert_eq!(fixed_keys().history_id().unwrap().as_slice(), hex(HISTORY_ID));
    assert_eq!(fixed_keys().profile_public().as_slice(), hex(PROFILE_PUBLIC));
    assert_eq!(*SpaceKeys::derived(&alice(), b"account").to_plaintext(), hex(DERIVED_KEYS));
}

#[test]
fn seals_of_another_hpke_open() {
    let seal = |text: &str| {
        let bytes = Bytes::from(hex(text));
        Seal { recipient: *alice().id().as_bytes(), enc: bytes.slice(..32), ciphertext: bytes.slice(32..) }
    };
    let opened = crate::open_keys(Some(SPACE), Epoch(7), &seal(SEAL), alice().signing_key()).unwrap();
    assert_same(&opened, &fixed_keys());
    let opened = crate::open_keys(None, Epoch(0), &seal(ROOT_SEAL), alice().signing_key()).unwrap();
    assert_same(&opened, &fixed_keys());
    assert_eq!(crate::open_profile(SPACE, Epoch(7), &fixed_keys(), &hex(PROFILE)).unwrap(), b"Alice");
}

#[test]
fn content_and_names() {
    let context = ContentContext {
        space: SPACE,
        tree: TreeId::from_hash([5; 32]),
        epoch: Epoch(7),
        author: alice().id(),
        kind: ChangeKind::Content,
    };
    let envelope = Envelope {
        object_type: "note".into(),
        object_id: "shopping".into(),
        data_type: "text".into(),
        payload: "milk".into(),
    };
    assert_eq!(crate::decrypt(&fixed_keys(), &context, &nonce(), &hex(CONTENT)), Ok(envelope));
    assert_eq!(crate::name_tag(&fixed_keys().name_key, "note", "shopping").as_slice(), hex(NAME_TAG));
}

#[test]
fn chain() {
    let history = HistoryKey::from_slice(&[6; 32]).unwrap();
    let opened = crate::ring::open_chain(SPACE, Epoch(8), &nonce(), &hex(CHAIN), &history, &fixed_keys().name_key);
    assert_same(&opened.unwrap(), &fixed_keys());
}

#[test]
fn a_vault_and_rows() {
    let Secrets { mnemonic, device, local_key } = crate::unlock(&hex(VAULT), &Unlock::KeyFile(&[9; 32])).unwrap();
    assert_eq!(mnemonic.phrase(), PHRASE);
    assert_eq!(device.id(), DeviceKeys::from_seed(&[10; 32]).id());
    assert_eq!(local_key.expose(), LocalKey::from_slice(&[11; 32]).unwrap().expose());
    assert_eq!(local_key.open_row(b"objects/1", &hex(ROW)).unwrap(), b"milk");
    assert_eq!(local_key.tag("note", b"shopping").as_slice(), hex(TAG));
}

fn nonce() -> [u8; 24] {
    std::array::from_fn(|i| u8::try_from(i).unwrap())
}
