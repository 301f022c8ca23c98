//! Known answers (computed with Python's `cryptography` 48, an independent implementation) and tampering.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const DAEMON_SECRET: &str = "77076d0a7318a57d3c16c17251b266454c6a2f92ebc0992e9a5f8b1c2d3e4f50";
const SIDECAR_SECRET: &str = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";

fn pair(secret: &str) -> KeyPair {
    KeyPair::from_bytes(hex::decode(secret).unwrap().try_into().unwrap())
}

fn session() -> SessionId {
    "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap()
}

fn channels() -> (SealedChannel, SealedChannel) {
    let (daemon, sidecar) = (pair(DAEMON_SECRET), pair(SIDECAR_SECRET));
    (daemon.agree(sidecar.public(), Side::Daemon, &session()).unwrap(), sidecar.agree(daemon.public(), Side::Sidecar, &session()).unwrap())
}

#[test]
fn the_derived_keys_are_the_known_ones_on_both_sides() {
    assert_eq!(pair(DAEMON_SECRET).public().to_base64(), "hLTYmBfpL0MegiC3fxKQdXw6ghN1f+SgGsMONh5dxEA=");
    let (daemon, sidecar) = channels();
    for channel in [daemon, sidecar] {
        assert_eq!(hex::encode(channel.auth_token.to_bytes()), "615a00b8ec288e5fdd579fce16632bfe02841a3037cfb4a69cc41f4a3c2b6cb2");
        assert_eq!(hex::encode(channel.provider_keys.to_bytes()), "02eb4a03f5b1098ab4b99bfec742a81f089007a4f1157881cae455f06636bed9");
    }
}

#[test]
fn the_sealed_bytes_are_the_known_ones() {
    let nonce = std::array::from_fn(|i| u8::try_from(i).unwrap());
    let aad = Purpose::ProviderKeys.aad(&session(), "openai", 7);
    let sealed = channels().0.provider_keys.seal_with_nonce(nonce, &aad, b"sk-known-answer");
    assert_eq!(String::from(sealed), "AAECAwQFBgcICQoLLR3TvjfM5051hzsIJK85rLGXzI8sTOHQlV6WEbx+6w==");
}

#[test]
fn sealed_data_opens_for_its_purpose_session_item_and_version_only() {
    let (daemon, sidecar) = channels();
    let aad = Purpose::ProviderKeys.aad(&session(), "openai", 7);
    let sealed = daemon.provider_keys.seal(&aad, b"sk-canary");
    assert_eq!(sidecar.provider_keys.open(&aad, &sealed).unwrap().as_slice(), b"sk-canary");

    let other = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAW".parse().unwrap();
    for wrong in [
        Purpose::AuthToken.aad(&session(), "openai", 7),
        Purpose::ProviderKeys.aad(&other, "openai", 7),
        Purpose::ProviderKeys.aad(&session(), "anthropic", 7),
        Purpose::ProviderKeys.aad(&session(), "openai", 8),
    ] {
        assert!(sidecar.provider_keys.open(&wrong, &sealed).is_err());
    }
    assert!(sidecar.auth_token.open(&aad, &sealed).is_err());
}

#[test]
fn keys_of_low_order_and_of_other_lengths_are_refused() {
    // The points of order 1, 2 and 8 of RFC 7748's curve, and the zero key.
    for low in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        let key = PublicKey(hex::decode(low).unwrap().try_into().unwrap());
        assert_eq!(pair(DAEMON_SECRET).agree(key, Side::Daemon, &session()).err(), Some(SealError::InvalidPublicKey));
    }
    for bad in ["", "AAAA", "not base64!", &BASE64.encode([1; 33])] {
        assert!(PublicKey::from_base64(bad).is_err());
    }
}

#[test]
fn nothing_of_a_key_is_printed() {
    let (daemon, _) = channels();
    assert_eq!(format!("{:?}", daemon.provider_keys), "SealKey");
}

proptest! {
    #[test]
    fn any_edited_byte_fails_to_open(at in any::<proptest::sample::Index>(), flip in 1u8..) {
        let key = SealKey::generate();
        let mut bytes = key.seal(b"aad", b"sk-canary").to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(key.open(b"aad", &Sealed::from_bytes(&bytes).unwrap()).is_err());
    }

    #[test]
    fn hostile_sealed_text_never_panics(text in ".{0,200}") {
        let _ = Sealed::try_from(text);
    }
}
