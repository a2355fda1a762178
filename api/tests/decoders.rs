//! Bytes from anybody to the decoders of requests: they answer or refuse, and never panic.
use api::catalog::catalog;
use api::{json, proto, yaml};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

/// A pod as a client would send it.
fn pod() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "labels": {"x": "y"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"port": "http"}}}],
            "terminationGracePeriodSeconds": 30, "nodeSelector": {"a": "b"}}
    })
}

/// Bytes at places, each in proportion to the length.
fn bend(mut bytes: Vec<u8>, changes: &[(u16, u8)], keep: u16) -> Vec<u8> {
    for (at, value) in changes {
        let at = usize::from(*at) * bytes.len() / 65_536;
        if let Some(byte) = bytes.get_mut(at) {
            *byte = *value;
        }
    }
    let kept = bytes.len() * usize::from(keep) / 65_535;
    bytes.truncate(kept);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in vec(any::<u8>(), 0..400)) {
        let _ = json::parse(&bytes);
        let _ = yaml::parse(&bytes);
        let _ = proto::unwrap(&bytes);
        let _ = proto::decode_object(&bytes);
    }

    #[test]
    fn any_bytes_in_an_envelope_are_decoded_or_refused(
        kind in 0..catalog().resources().count(), bytes in vec(any::<u8>(), 0..200)
    ) {
        let resource = catalog().resources().nth(kind).unwrap();
        let _ = proto::decode_schema(&resource.schema, &bytes);
    }

    #[test]
    fn a_bent_object_is_decoded_or_refused_and_so_is_its_way_back(
        changes in vec((any::<u16>(), any::<u8>()), 0..5), keep in prop_oneof![Just(u16::MAX), any::<u16>()]
    ) {
        let body = bend(proto::encode_object(&pod()).unwrap(), &changes, keep);
        if let Ok(read) = proto::decode_object(&body) {
            // A quantity that is none is decoded as text, which has no way back.
            let _ = proto::encode_object(&read);
        }
    }

    #[test]
    fn bent_json_is_parsed_or_refused(
        changes in vec((any::<u16>(), any::<u8>()), 0..5), keep in prop_oneof![Just(u16::MAX), any::<u16>()]
    ) {
        let text = bend(pod().to_string().into_bytes(), &changes, keep);
        if let Ok(parsed) = json::parse(&text) {
            let again = json::parse(parsed.value.to_string().as_bytes()).unwrap();
            prop_assert_eq!(again.value, parsed.value);
        }
        let _ = yaml::parse(&text);
    }

    #[test]
    fn nested_json_is_parsed_or_refused(depth in 0_usize..20_000, open in prop_oneof![Just("["), Just("{\"a\":")]) {
        let _ = json::parse(open.repeat(depth).as_bytes());
        let _ = yaml::parse(open.repeat(depth.min(500)).as_bytes());
    }
}
