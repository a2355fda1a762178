//! Lists, selectors, pages, shapes and watches.
#![allow(clippy::unwrap_used)]

mod support;

use control_plane_store::Revision;
use http::Method;
use serde_json::{Value, json};
use support::{Cluster, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

async fn with_maps(count: usize) -> Cluster {
    let cluster = Cluster::new().await;
    for i in 0..count {
        let mut object = config_map(&format!("m{i}"));
        object["metadata"]["labels"] = json!({"odd": (i % 2 == 1).to_string()});
        cluster.post(MAPS, object).await.expect(201);
    }
    cluster
}

#[tokio::test]
async fn a_list_has_its_version_and_untyped_items() {
    let cluster = with_maps(2).await;
    let list = cluster.get(MAPS).await.expect(200);
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("ConfigMapList"), &json!("v1"))
    );
    assert_eq!(names(&list), ["m0", "m1"]);
    assert_eq!(list["items"][0].get("kind"), None);
    assert_eq!(version(&list), cluster.store.snapshot().revision().to_string());
}

#[tokio::test]
async fn label_and_field_selectors_narrow_a_list() {
    let cluster = with_maps(4).await;
    let list = cluster
        .get(&format!("{MAPS}?labelSelector=odd%3Dtrue"))
        .await
        .expect(200);
    assert_eq!(names(&list), ["m1", "m3"]);
    let list = cluster
        .get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm2"))
        .await
        .expect(200);
    assert_eq!(names(&list), ["m2"]);
    let failed = cluster
        .get(&format!("{MAPS}?fieldSelector=data.x%3D1"))
        .await
        .expect(400);
    assert!(
        failed["message"]
            .as_str()
            .unwrap()
            .ends_with("field label not supported: data.x"),
        "{failed}"
    );
    cluster
        .get(&format!("{MAPS}?labelSelector=a%20b"))
        .await
        .expect(400);
}

#[tokio::test]
async fn pages_are_of_one_revision_even_when_objects_change_in_between() {
    let cluster = with_maps(5).await;
    let first = cluster.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["m0".into(), "m1".into()], &json!(3))
    );
    cluster.delete(&format!("{MAPS}/m2")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = cluster
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&second), ["m2", "m3"]);
    assert_eq!(version(&second), version(&first));
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = cluster
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    assert_eq!(
        (names(&third), third["metadata"].get("continue")),
        (vec!["m4".into()], None)
    );
}

#[tokio::test]
async fn an_expired_page_offers_to_go_on_inconsistently() {
    let cluster = with_maps(4).await;
    let first = cluster.get(&format!("{MAPS}?limit=2")).await.expect(200);
    cluster.post(MAPS, config_map("x")).await.expect(201);
    cluster
        .store
        .compact(cluster.store.snapshot().revision())
        .await
        .unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let gone = cluster
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect(410);
    assert_eq!(gone["reason"], "Expired");
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let rest = cluster.get(&format!("{MAPS}?continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["m2", "m3", "x"]);
}

#[tokio::test]
async fn exact_versions_show_the_past_and_future_ones_time_out() {
    let cluster = with_maps(2).await;
    let list = cluster.get(MAPS).await.expect(200);
    cluster.delete(&format!("{MAPS}/m0")).await.expect(200);
    let past = format!(
        "{MAPS}?resourceVersion={}&resourceVersionMatch=Exact",
        version(&list)
    );
    assert_eq!(names(&cluster.get(&past).await.expect(200)), ["m0", "m1"]);
    tokio::time::pause();
    let failed = cluster
        .get(&format!("{MAPS}?resourceVersion=99999999"))
        .await
        .expect(504);
    assert_eq!(
        failed["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
}

#[tokio::test]
async fn large_lists_come_compressed_to_those_who_can_read_it() {
    use std::io::Read as _;
    let cluster = Cluster::new().await;
    for i in 0..40 {
        let mut object = config_map(&format!("m{i}"));
        object["data"]["big"] = "x".repeat(10_000).into();
        cluster.post(MAPS, object).await.expect(201);
    }
    let plain = cluster.get(MAPS).await;
    assert_eq!(plain.header("content-encoding"), "");
    let zipped = cluster
        .send(Method::GET, MAPS, &[("accept-encoding", "gzip")], Vec::new())
        .await;
    assert_eq!(zipped.header("content-encoding"), "gzip");
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&zipped.bytes[..])
        .read_to_end(&mut text)
        .unwrap();
    assert!(zipped.bytes.len() < plain.bytes.len() / 10);
    assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), plain.json());
}

#[tokio::test]
async fn tables_and_partial_objects_are_given_when_asked_for() {
    let cluster = with_maps(1).await;
    let table = [(
        "accept",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    )];
    let answer = cluster
        .send(Method::GET, MAPS, &table, Vec::new())
        .await
        .expect(200);
    assert_eq!(
        (&answer["kind"], &answer["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("m0"))
    );
    assert_eq!(answer["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = [(
        "accept",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    )];
    let answer = cluster
        .send(Method::GET, MAPS, &partial, Vec::new())
        .await
        .expect(200);
    assert_eq!(answer["kind"], "PartialObjectMetadataList");
    assert_eq!(answer["items"][0].get("data"), None);
    let nothing = cluster
        .send(Method::GET, MAPS, &[("accept", "text/html")], Vec::new())
        .await;
    assert_eq!(nothing.code, 406);
}

#[tokio::test]
async fn protobuf_goes_both_ways() {
    let cluster = Cluster::new().await;
    let media = "application/vnd.kubernetes.protobuf";
    let body = api::proto::encode_object(&config_map("a")).unwrap();
    let headers = [("content-type", media), ("accept", media)];
    let answer = cluster.send(Method::POST, MAPS, &headers, body).await;
    assert_eq!((answer.code, answer.header("content-type")), (201, media));
    let object = api::proto::decode_object(&answer.bytes).unwrap();
    assert_eq!(
        (&object["metadata"]["name"], &object["data"]["a"]),
        (&json!("a"), &json!("1"))
    );
    let list = cluster
        .send(Method::GET, MAPS, &[("accept", media)], Vec::new())
        .await;
    let list = api::proto::decode_object(&list.bytes).unwrap();
    assert_eq!(
        (&list["kind"], names(&list)),
        (&json!("ConfigMapList"), vec!["a".to_owned()])
    );
    let missing = cluster
        .send(
            Method::GET,
            &format!("{MAPS}/b"),
            &[("accept", media)],
            Vec::new(),
        )
        .await;
    assert_eq!(
        api::proto::decode_object(&missing.bytes).unwrap()["reason"],
        "NotFound"
    );
}

#[tokio::test]
async fn a_watch_from_a_version_tells_every_later_change_in_order() {
    let cluster = with_maps(1).await;
    let list = cluster.get(MAPS).await.expect(200);
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&list)))
        .await;
    cluster.post(MAPS, config_map("b")).await.expect(201);
    cluster
        .patch("merge", &format!("{MAPS}/b"), json!({"data": {"a": "2"}}))
        .await
        .expect(200);
    cluster.delete(&format!("{MAPS}/b")).await.expect(200);
    let mut last = 0;
    for wanted in ["ADDED", "MODIFIED", "DELETED"] {
        let (kind, object) = events.next().await.unwrap();
        let version: u64 = version(&object).parse().unwrap();
        assert!(kind == wanted && version > last && object["kind"] == "ConfigMap");
        last = version;
    }
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let cluster = with_maps(2).await;
    let mut events = cluster.watch(&format!("{MAPS}?watch=1")).await;
    for wanted in ["m0", "m1"] {
        let (kind, object) = events.next().await.unwrap();
        assert_eq!(
            (kind.as_str(), &object["metadata"]["name"]),
            ("ADDED", &json!(wanted))
        );
    }
}

#[tokio::test]
async fn initial_events_end_with_a_marked_bookmark() {
    let cluster = with_maps(1).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = cluster.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.next().await.unwrap().0, "ADDED");
    let (kind, object) = events.next().await.unwrap();
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        object["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(version(&object), cluster.store.snapshot().revision().to_string());
}

#[tokio::test]
async fn an_object_that_starts_or_stops_matching_is_added_or_deleted() {
    let cluster = with_maps(1).await;
    let list = cluster.get(MAPS).await.expect(200);
    let path = format!(
        "{MAPS}?watch=1&labelSelector=on%3Dyes&resourceVersion={}",
        version(&list)
    );
    let mut events = cluster.watch(&path).await;
    let map = format!("{MAPS}/m0");
    cluster
        .patch("merge", &map, json!({"metadata": {"labels": {"on": "yes"}}}))
        .await
        .expect(200);
    assert_eq!(events.next().await.unwrap().0, "ADDED");
    let off = cluster
        .patch("merge", &map, json!({"metadata": {"labels": {"on": "no"}}}))
        .await
        .expect(200);
    let (kind, object) = events.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), &object["metadata"]["labels"]["on"]),
        ("DELETED", &json!("yes"))
    );
    assert_eq!(version(&object), version(&off));
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_gets_an_error_event() {
    let cluster = with_maps(3).await;
    cluster
        .store
        .compact(cluster.store.snapshot().revision())
        .await
        .unwrap();
    let mut events = cluster
        .watch(&format!("{MAPS}?watch=1&resourceVersion={}", Revision::new(2)))
        .await;
    let (kind, status) = events.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), &status["code"], &status["reason"]),
        ("ERROR", &json!(410), &json!("Expired"))
    );
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn pods_are_selected_by_node() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["a", "b"] {
        cluster.post(pods, pod(name)).await.expect(201);
    }
    let mut events = cluster
        .watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1")
        .await;
    let binding = json!({"target": {"name": "n1"}});
    cluster
        .post(&format!("{pods}/b/binding"), binding)
        .await
        .expect(201);
    let (kind, object) = events.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), &object["metadata"]["name"]),
        ("ADDED", &json!("b"))
    );
    let list = cluster
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1,status.phase%3DPending")
        .await
        .expect(200);
    assert_eq!(names(&list), ["b"]);
}
