//! Creating, changing and deleting, through the whole server without sockets.
#![allow(clippy::unwrap_used)]

mod support;

use http::Method;
use serde_json::json;
use support::{Cluster, config_map, deployment, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn a_created_object_gets_what_only_the_server_sets() {
    let cluster = Cluster::new().await;
    let created = cluster.post(MAPS, config_map("a")).await.expect(201);
    let meta = &created["metadata"];
    assert_eq!(meta["uid"].as_str().unwrap().len(), 36);
    assert!(meta["creationTimestamp"].is_string() && meta["resourceVersion"].is_string());
    assert_eq!(meta["namespace"], "default");
    let read = cluster.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(read, created);
    let again = cluster.post(MAPS, config_map("a")).await.expect(409);
    assert_eq!(
        (&again["reason"], &again["message"]),
        (&json!("AlreadyExists"), &json!("configmaps \"a\" already exists"))
    );
}

#[tokio::test]
async fn names_are_drawn_from_generate_name() {
    let cluster = Cluster::new().await;
    let mut object = config_map("");
    object["metadata"] = json!({"generateName": "web-"});
    let created = cluster.post(MAPS, object).await.expect(201);
    let name = created["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let failed = cluster.post(MAPS, json!({"metadata": {}})).await.expect(422);
    assert_eq!(failed["details"]["causes"][0]["field"], "metadata.name");
}

#[tokio::test]
async fn a_stale_replace_is_refused_and_a_current_one_taken() {
    let cluster = Cluster::new().await;
    let first = cluster.post(MAPS, config_map("a")).await.expect(201);
    let mut second = first.clone();
    second["data"]["a"] = "2".into();
    let path = format!("{MAPS}/a");
    let second = cluster.put(&path, second).await.expect(200);
    assert_ne!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let stale = cluster.put(&path, first).await.expect(409);
    assert_eq!(stale["reason"], "Conflict");
    // Nothing changed: no new version.
    let same = cluster.put(&path, second.clone()).await.expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"],
        second["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn unknown_fields_are_warned_of_or_refused_as_the_client_wishes() {
    let cluster = Cluster::new().await;
    let mut object = config_map("a");
    object["dat"] = json!({});
    let strict = cluster
        .post(&format!("{MAPS}?fieldValidation=Strict"), object.clone())
        .await
        .expect(400);
    assert!(
        strict["message"]
            .as_str()
            .unwrap()
            .contains("strict decoding error: unknown field \"dat\""),
        "{strict}"
    );
    let warned = cluster.post(MAPS, object).await;
    assert_eq!(warned.header("warning"), "299 - \"unknown field \\\"dat\\\"\"");
    assert_eq!(warned.expect(201).get("dat"), None);
}

#[tokio::test]
async fn a_wrong_type_and_an_invalid_value_name_the_field() {
    let cluster = Cluster::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let mut wrong = deployment("a");
    wrong["spec"]["replicas"] = "three".into();
    let failed = cluster.post(path, wrong).await.expect(400);
    assert!(
        failed["message"].as_str().unwrap().contains("spec.replicas"),
        "{failed}"
    );
    let mut invalid = deployment("a");
    invalid["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    let failed = cluster.post(path, invalid).await.expect(422);
    assert_eq!(
        failed["details"]["causes"][0]["field"], "spec.template.metadata.labels",
        "{failed}"
    );
}

#[tokio::test]
async fn dry_run_answers_as_if_and_stores_nothing() {
    let cluster = Cluster::new().await;
    cluster
        .post(&format!("{MAPS}?dryRun=All"), config_map("a"))
        .await
        .expect(201);
    cluster.get(&format!("{MAPS}/a")).await.expect(404);
    cluster.post(MAPS, config_map("a")).await.expect(201);
    cluster.delete(&format!("{MAPS}/a?dryRun=All")).await.expect(200);
    cluster.get(&format!("{MAPS}/a")).await.expect(200);
}

#[tokio::test]
async fn all_three_patch_types_work() {
    let cluster = Cluster::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments/a";
    cluster
        .post("/apis/apps/v1/namespaces/default/deployments", deployment("a"))
        .await
        .expect(201);
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "e:1"}]}}}});
    let patched = cluster.patch("strategic-merge", path, patch).await.expect(200);
    assert_eq!(
        patched["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(patched["metadata"]["generation"], 2);
    let patched = cluster
        .patch("merge", path, json!({"spec": {"replicas": 5}}))
        .await
        .expect(200);
    assert_eq!(patched["spec"]["replicas"], 5);
    let patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 7}]);
    let patched = cluster.patch("json", path, patch).await.expect(200);
    assert_eq!(patched["spec"]["replicas"], 7);
    let failed = cluster
        .patch("merge", path, json!({"metadata": {"resourceVersion": "1"}}))
        .await
        .expect(409);
    assert_eq!(failed["reason"], "Conflict");
}

#[tokio::test]
async fn status_is_written_only_through_its_subresource() {
    let cluster = Cluster::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let mut object = deployment("a");
    object["status"] = json!({"replicas": 3});
    let created = cluster.post(path, object).await.expect(201);
    assert_eq!(created["status"].get("replicas"), None);
    let patch = json!({"status": {"replicas": 2}, "spec": {"replicas": 9}});
    let patched = cluster
        .patch("merge", &format!("{path}/a/status"), patch)
        .await
        .expect(200);
    assert_eq!(
        (&patched["status"]["replicas"], &patched["spec"]["replicas"]),
        (&json!(2), &json!(3))
    );
}

#[tokio::test]
async fn scale_reads_and_sets_replicas() {
    let cluster = Cluster::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    cluster.post(path, deployment("a")).await.expect(201);
    let scale = cluster.get(&format!("{path}/a/scale")).await.expect(200);
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(3), &json!("app=a"))
    );
    let scale = cluster
        .patch(
            "merge",
            &format!("{path}/a/scale"),
            json!({"spec": {"replicas": 1}}),
        )
        .await
        .expect(200);
    assert_eq!(scale["spec"]["replicas"], 1);
    assert_eq!(
        cluster.get(&format!("{path}/a")).await.expect(200)["spec"]["replicas"],
        1
    );
}

#[tokio::test]
async fn finalizers_keep_an_object_until_the_last_is_gone() {
    let cluster = Cluster::new().await;
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(MAPS, object).await.expect(201);
    let path = format!("{MAPS}/a");
    let marked = cluster.delete(&path).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    cluster.get(&path).await.expect(200);
    cluster
        .patch("merge", &path, json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    cluster.get(&path).await.expect(404);
}

#[tokio::test]
async fn foreground_and_orphan_deletes_leave_their_finalizer_for_the_garbage_collector() {
    let cluster = Cluster::new().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        cluster
            .post(MAPS, config_map(&policy.to_lowercase()))
            .await
            .expect(201);
        let path = format!("{MAPS}/{}?propagationPolicy={policy}", policy.to_lowercase());
        let marked = cluster.delete(&path).await.expect(200);
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
    }
}

#[tokio::test]
async fn delete_preconditions_hold_or_the_object_stays() {
    let cluster = Cluster::new().await;
    let created = cluster.post(MAPS, config_map("a")).await.expect(201);
    let path = format!("{MAPS}/a");
    let body = |uid: &str| json!({"preconditions": {"uid": uid}}).to_string().into_bytes();
    cluster
        .send(Method::DELETE, &path, &[], body("other"))
        .await
        .expect(409);
    let uid = created["metadata"]["uid"].as_str().unwrap();
    let done = cluster
        .send(Method::DELETE, &path, &[], body(uid))
        .await
        .expect(200);
    assert_eq!(
        (&done["status"], &done["details"]["uid"]),
        (&json!("Success"), &json!(uid))
    );
}

#[tokio::test]
async fn a_bound_pod_goes_gracefully_and_an_unscheduled_one_at_once() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    cluster.post(PODS, pod("free")).await.expect(201);
    cluster.delete(&format!("{PODS}/free")).await.expect(200);
    cluster.get(&format!("{PODS}/free")).await.expect(404);

    cluster.post(PODS, pod("bound")).await.expect(201);
    let binding = json!({"metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n1"}});
    cluster
        .post(&format!("{PODS}/bound/binding"), binding.clone())
        .await
        .expect(201);
    cluster
        .post(&format!("{PODS}/bound/binding"), binding)
        .await
        .expect(409);
    let path = format!("{PODS}/bound");
    let marked = cluster.delete(&path).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(marked["status"]["conditions"][0]["type"], "PodScheduled");
    cluster
        .delete(&format!("{path}?gracePeriodSeconds=0"))
        .await
        .expect(200);
    cluster.get(&path).await.expect(404);
}

#[tokio::test]
async fn a_collection_delete_takes_what_the_selector_matches() {
    let cluster = Cluster::new().await;
    for name in ["a", "b"] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"app": name});
        cluster.post(MAPS, object).await.expect(201);
    }
    cluster
        .delete(&format!("{MAPS}?labelSelector=app%3Da"))
        .await
        .expect(200);
    cluster.get(&format!("{MAPS}/a")).await.expect(404);
    cluster.get(&format!("{MAPS}/b")).await.expect(200);
}

#[tokio::test]
async fn yaml_is_as_good_as_json() {
    let cluster = Cluster::new().await;
    let text = "kind: ConfigMap\napiVersion: v1\nmetadata:\n  name: a\ndata:\n  yes: 'no'\n";
    let headers = [
        ("content-type", "application/yaml"),
        ("accept", "application/yaml"),
    ];
    let answer = cluster.send(Method::POST, MAPS, &headers, text.into()).await;
    assert_eq!(answer.code, 201);
    assert_eq!(answer.header("content-type"), "application/yaml");
    assert!(String::from_utf8_lossy(&answer.bytes).contains("name: a"));
}

#[tokio::test]
async fn a_patch_of_other_objects_metadata_is_refused() {
    let cluster = Cluster::new().await;
    cluster.post(MAPS, config_map("a")).await.expect(201);
    cluster
        .patch("merge", &format!("{MAPS}/a"), json!({"metadata": {"name": "b"}}))
        .await
        .expect(400);
    cluster
        .patch("merge", &format!("{MAPS}/b"), json!({"data": {}}))
        .await
        .expect(404);
}

#[tokio::test]
async fn fields_have_owners_and_apply_respects_them() {
    let cluster = Cluster::new().await;
    let path = format!("{MAPS}/a");
    let apply = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": value}});
    cluster.patch("apply", &path, apply("1")).await.expect(400);
    let one = format!("{path}?fieldManager=one");
    let made = cluster.patch("apply", &one, apply("1")).await.expect(201);
    assert_eq!(
        (
            &made["metadata"]["managedFields"][0]["manager"],
            &made["data"]["a"]
        ),
        (&json!("one"), &json!("1"))
    );
    let same = cluster.patch("apply", &one, apply("1")).await.expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );

    let two = format!("{path}?fieldManager=two");
    let failed = cluster.patch("apply", &two, apply("2")).await.expect(409);
    assert_eq!(
        failed["details"]["causes"][0]["reason"], "FieldManagerConflict",
        "{failed}"
    );
    let forced = cluster
        .patch("apply", &format!("{two}&force=true"), apply("2"))
        .await
        .expect(200);
    assert_eq!(forced["data"]["a"], "2");
    // Who applies without the field gives it up; the last owner takes it along.
    let none = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let gone = cluster.patch("apply", &two, none).await.expect(200);
    assert_eq!(gone.get("data"), None);
}

#[tokio::test]
async fn an_ordinary_write_owns_what_it_changed() {
    let cluster = Cluster::new().await;
    let headers = [
        ("user-agent", "kubectl-create/v1"),
        ("content-type", "application/json"),
    ];
    let body = config_map("a").to_string().into_bytes();
    let made = cluster.send(Method::POST, MAPS, &headers, body).await.expect(201);
    let managers = &made["metadata"]["managedFields"];
    assert_eq!(
        (&managers[0]["manager"], &managers[0]["operation"]),
        (&json!("kubectl-create"), &json!("Update"))
    );
    assert_eq!(managers[0]["fieldsV1"]["f:data"]["f:a"], json!({}));
}

#[tokio::test]
async fn a_quota_is_charged_once_for_what_is_stored_and_refuses_what_is_too_much() {
    let c = Cluster::new().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "1", "pods": "1"}}});
    c.post(quotas, quota).await.expect(201);
    let status = json!({"status": {"hard": {"configmaps": "1"}, "used": {"configmaps": "0"}}});
    c.patch("merge", &format!("{quotas}/q/status"), status)
        .await
        .expect(200);
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |name: &str| json!({"metadata": {"name": name}});
    c.post(maps, map("a")).await.expect(201);
    let refused = c.post(maps, map("b")).await.expect(403);
    let why = "exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1";
    assert!(refused["message"].as_str().unwrap().ends_with(why), "{refused}");
    c.post(maps, map("a")).await.expect(409);
    let used = c.get(&format!("{quotas}/q")).await.expect(200)["status"]["used"].clone();
    assert_eq!(
        used,
        json!({"configmaps": "1"}),
        "what was not stored is not charged"
    );
}

#[tokio::test]
async fn a_patch_of_the_status_may_leave_out_what_the_kind_requires() {
    let c = Cluster::new().await;
    let sets = "/apis/apps/v1/namespaces/default/deployments";
    c.post(sets, deployment("d")).await.expect(201);
    let patch = json!({"spec": {"selector": null}, "status": {"observedGeneration": 7}});
    let patched = c
        .patch("merge", &format!("{sets}/d/status"), patch)
        .await
        .expect(200);
    assert_eq!(patched["status"]["observedGeneration"], 7);
    assert!(
        patched["spec"]["selector"].is_object(),
        "the rest stays as it was"
    );
}

#[tokio::test]
async fn a_pod_takes_its_overhead_from_its_runtime_class_which_has_to_exist() {
    let c = Cluster::new().await;
    c.account("default").await;
    let mut with = pod("a");
    with["spec"]["runtimeClassName"] = "sandboxed".into();
    let refused = c.post(PODS, with.clone()).await.expect(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("RuntimeClass \"sandboxed\" not found")
    );
    let class = json!({"metadata": {"name": "sandboxed"}, "handler": "runc", "overhead": {"podFixed": {"cpu": "10m"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}}});
    c.post("/apis/node.k8s.io/v1/runtimeclasses", class)
        .await
        .expect(201);
    let made = c.post(PODS, with.clone()).await.expect(201);
    assert_eq!(
        (
            &made["spec"]["overhead"]["cpu"],
            &made["spec"]["nodeSelector"]["vm"]
        ),
        (&json!("10m"), &json!("yes"))
    );
    with["metadata"]["name"] = "b".into();
    with["spec"]["overhead"] = json!({"cpu": "1"});
    c.post(PODS, with).await.expect(403);
}

#[tokio::test]
async fn a_review_is_no_row_of_a_table_and_sysctls_have_names() {
    let c = Cluster::new().await;
    c.account("default").await;
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = c
        .send(Method::POST, path, &accept, review.to_string().into())
        .await;
    assert_eq!(answer.code, 406);
    let mut bad = pod("a");
    let named = |name: &str| json!({"name": name, "value": "1"});
    bad["spec"]["securityContext"] =
        json!({"sysctls": [named("foo-"), named("kernel.shm_rmid_forced"), named("bar..")]});
    let refused = c.post(PODS, bad).await.expect(422);
    let causes = refused["details"]["causes"].as_array().unwrap();
    assert_eq!(causes.len(), 2, "{refused}");
}

#[tokio::test]
async fn a_write_whose_client_leaves_is_done_all_the_same_and_its_charge_is_for_something() {
    let c = Cluster::new().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "9"}}});
    c.post(quotas, quota).await.expect(201);
    let status = json!({"status": {"hard": {"configmaps": "9"}, "used": {"configmaps": "0"}}});
    c.patch("merge", &format!("{quotas}/q/status"), status)
        .await
        .expect(200);
    let maps = "/api/v1/namespaces/default/configmaps";
    let mut events = c.watch(&format!("{maps}?watch=1")).await;
    let mut left = Box::pin(c.post(maps, json!({"metadata": {"name": "a"}})));
    assert!(futures::poll!(&mut left).is_pending());
    drop(left);
    let (event, map) = events.next().await.unwrap();
    assert_eq!((event.as_str(), &map["metadata"]["name"]), ("ADDED", &json!("a")));
    let used = c.get(&format!("{quotas}/q")).await.expect(200)["status"]["used"].clone();
    assert_eq!(used, json!({"configmaps": "1"}));
}
