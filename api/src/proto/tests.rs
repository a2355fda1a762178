use super::*;
use serde_json::json;

#[test]
fn a_body_without_the_envelope_is_refused() {
    assert_eq!(unwrap(b"{}"), Err(ProtoError::NoMagic));
}

#[test]
fn damaged_bytes_are_an_error_and_never_a_panic() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}});
    let body = encode_object(&pod).unwrap();
    for length in 0..body.len() {
        let _ = decode_object(&body[..length]);
    }
    for place in 0..body.len() {
        for bits in [0xff, 0x80, 0x01] {
            let mut bad = body.clone();
            bad[place] ^= bits;
            let _ = decode_object(&bad);
        }
    }
    assert_eq!(
        decode_object(&body[..body.len() - 5]).unwrap_err(),
        ProtoError::Damaged
    );
}

#[test]
fn endless_nesting_is_refused() {
    let mut schema = json!({"type": "object"});
    for _ in 0..300 {
        schema = json!({"not": schema});
    }
    let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    let bytes = encode(name, &schema).unwrap();
    assert_eq!(decode(name, &bytes), Err(ProtoError::TooDeep));
}

#[test]
fn pointers_keep_zero_and_values_drop_it() {
    let given =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0, "paused": false}});
    let read = decode_object(&encode_object(&given).unwrap()).unwrap();
    assert_eq!(read["spec"]["replicas"], 0);
    assert_eq!(read["spec"].get("paused"), None);
    assert_eq!(read["spec"]["selector"], Value::Null);
    assert_eq!(read["status"], json!({}));
}

#[test]
fn a_list_made_of_items_reads_as_a_list() {
    let item = encode(
        "k8s.io.api.core.v1.ConfigMap",
        &json!({"metadata": {"name": "a"}, "data": {"k": "v"}}),
    )
    .unwrap();
    let type_meta = TypeMeta {
        api_version: "v1".into(),
        kind: "ConfigMapList".into(),
    };
    let body = list(
        &type_meta,
        &json!({"resourceVersion": "7"}),
        [item.as_slice(), item.as_slice()],
    )
    .unwrap();
    let read = decode_object(&body).unwrap();
    assert_eq!(read["metadata"]["resourceVersion"], "7");
    assert_eq!(read["items"].as_array().unwrap().len(), 2);
    assert_eq!(read["items"][1]["data"]["k"], "v");
}

#[test]
fn a_watch_event_holds_the_object_with_its_envelope() {
    let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "a"}, "spec": {}});
    let event = watch_event("ADDED", &encode_object(&lease).unwrap());
    let read = decode("k8s.io.apimachinery.pkg.apis.meta.v1.WatchEvent", &event).unwrap();
    assert_eq!(read, json!({"type": "ADDED", "object": lease}));
}

#[test]
fn partial_metadata_has_a_kind_of_its_own() {
    let object =
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}});
    assert_eq!(decode_object(&encode_object(&object).unwrap()).unwrap(), object);
}
