//! What is special to some kinds: services, namespaces, pods, tokens, reviews; discovery.
#![allow(clippy::unwrap_used)]

mod support;

use control_plane_apiserver::Identity;
use http::Method;
use serde_json::{Value, json};
use support::{Cluster, config_map, pod};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn ports() -> Value {
    json!([{"port": 80, "protocol": "TCP"}])
}

#[tokio::test]
async fn a_new_cluster_has_its_namespaces_and_the_service_kubernetes() {
    let cluster = Cluster::new().await;
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = cluster
            .get(&format!("/api/v1/namespaces/{name}"))
            .await
            .expect(200);
        assert_eq!(namespace["status"]["phase"], "Active");
    }
    let service = cluster.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let slice = cluster.get(slices).await.expect(200);
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.1"]));
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let ranges = cluster.get(ranges).await.expect(200);
    assert!(ranges["spec"]["cidrs"].as_array().is_some_and(|c| !c.is_empty()));
    assert_eq!(ranges["status"]["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn addresses_of_services_outlive_a_restart() {
    let cluster = Cluster::new().await;
    let spec = json!({"clusterIP": "10.96.7.7", "ports": ports()});
    cluster
        .post(SERVICES, service("a", spec.clone()))
        .await
        .expect(201);
    let cluster = cluster.restarted().await;
    let failed = cluster
        .post(SERVICES, service("b", spec.clone()))
        .await
        .expect(422);
    assert!(
        failed["message"]
            .as_str()
            .unwrap()
            .contains("provided IP is already allocated"),
        "{failed}"
    );
    cluster.delete(&format!("{SERVICES}/a")).await.expect(200);
    cluster.post(SERVICES, service("b", spec)).await.expect(201);
}

#[tokio::test]
async fn a_replaced_service_keeps_its_address_and_node_port() {
    let cluster = Cluster::new().await;
    let first = cluster
        .post(
            SERVICES,
            service("a", json!({"type": "NodePort", "ports": ports()})),
        )
        .await
        .expect(201);
    let mut new = service(
        "a",
        json!({"type": "NodePort", "ports": ports(), "sessionAffinity": "ClientIP"}),
    );
    new["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"].clone();
    let second = cluster.put(&format!("{SERVICES}/a"), new).await.expect(200);
    assert_eq!(second["spec"]["clusterIP"], first["spec"]["clusterIP"]);
    assert_eq!(
        second["spec"]["ports"][0]["nodePort"],
        first["spec"]["ports"][0]["nodePort"]
    );
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_is_missing_or_going() {
    let cluster = Cluster::new().await;
    let maps = "/api/v1/namespaces/x/configmaps";
    let failed = cluster.post(maps, config_map("a")).await.expect(404);
    assert_eq!(failed["message"], "namespaces \"x\" not found");
    cluster
        .post("/api/v1/namespaces", json!({"metadata": {"name": "x"}}))
        .await
        .expect(201);
    cluster.post(maps, config_map("a")).await.expect(201);
    let going = cluster.delete("/api/v1/namespaces/x").await.expect(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let failed = cluster.post(maps, config_map("b")).await.expect(403);
    assert_eq!(failed["details"]["causes"][0]["reason"], "NamespaceTerminating");

    let mut namespace = cluster.get("/api/v1/namespaces/x").await.expect(200);
    namespace["spec"]["finalizers"] = json!([]);
    cluster
        .put("/api/v1/namespaces/x/finalize", namespace)
        .await
        .expect(200);
    cluster.get("/api/v1/namespaces/x").await.expect(404);
    cluster.delete("/api/v1/namespaces/default").await.expect(403);
}

#[tokio::test]
async fn a_pod_runs_as_an_account_with_a_token_and_default_tolerations() {
    let cluster = Cluster::new().await;
    let failed = cluster.post(PODS, pod("a")).await.expect(403);
    assert!(
        failed["message"]
            .as_str()
            .unwrap()
            .contains("serviceaccount \"default\" not found"),
        "{failed}"
    );
    cluster.account("default").await;
    let spec = cluster.post(PODS, pod("a")).await.expect(201)["spec"].clone();
    assert_eq!(
        (&spec["serviceAccountName"], &spec["priority"]),
        (&json!("default"), &json!(0))
    );
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-"));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    let mut critical = pod("b");
    critical["spec"]["priorityClassName"] = "system-node-critical".into();
    let spec = cluster.post(PODS, critical).await.expect(201)["spec"].clone();
    assert_eq!(spec["priority"], 2_000_001_000);
}

#[tokio::test]
async fn a_token_speaks_for_its_account_until_its_pod_is_gone() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    let pod = cluster.post(PODS, pod("a")).await.expect(201);
    let request = json!({"spec": {"audiences": null, "expirationSeconds": 3607,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "a", "uid": pod["metadata"]["uid"]}}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = cluster.post(path, request).await.expect(201)["status"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let review = json!({"spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = cluster.post(reviews, review.clone()).await.expect(201)["status"].clone();
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(
        status["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["a"])
    );

    // With the token alone, as a pod sends it.
    let ask = |path: &'static str| {
        let request = http::Request::get(path).header("authorization", format!("Bearer {token}"));
        cluster.server.handle(
            None,
            request.body(control_plane_apiserver::body::full("")).unwrap(),
        )
    };
    assert_eq!(ask("/api").await.status(), 200);
    assert_eq!(ask(PODS).await.status(), 403);
    cluster.delete(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(ask("/api").await.status(), 401);
    let status = cluster.post(reviews, review).await.expect(201)["status"].clone();
    assert_eq!(status["authenticated"], false);
}

#[tokio::test]
async fn rights_come_from_roles_and_bindings_at_once() {
    let cluster = Cluster::new().await;
    let user = cluster.as_user(Identity::new("jo", &["devs"]));
    let maps = "/api/v1/namespaces/default/configmaps";
    let failed = user.get(maps).await.expect(403);
    let wanted = "configmaps is forbidden: User \"jo\" cannot list resource \"configmaps\" in API group \"\" in the \
                  namespace \"default\"";
    assert_eq!(failed["message"], wanted);
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"metadata": {"name": "r"}, "rules": [
        {"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]});
    cluster.post(&format!("{roles}/roles"), role).await.expect(201);
    let binding = json!({"metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "devs"}]});
    cluster
        .post(&format!("{roles}/rolebindings"), binding)
        .await
        .expect(201);
    user.get(maps).await.expect(200);
    user.post(maps, config_map("a")).await.expect(403);
    let review = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "configmaps", "namespace": "default"}}});
    let answer = user
        .post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        .await
        .expect(201);
    assert_eq!(answer["status"]["allowed"], true);
    cluster
        .delete(&format!("{roles}/rolebindings/b"))
        .await
        .expect(200);
    user.get(maps).await.expect(403);
}

#[tokio::test]
async fn a_node_writes_its_own_objects_only() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    let node = cluster.as_user(Identity::new("system:node:n1", &["system:nodes"]));
    let created = node
        .post("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await
        .expect(201);
    assert_eq!(
        created["spec"]["taints"][0]["key"],
        "node.kubernetes.io/not-ready"
    );
    let patch = json!({"status": {"phase": "Running"}});
    node.patch("merge", "/api/v1/nodes/n1/status", patch.clone())
        .await
        .expect(200);
    node.patch("merge", "/api/v1/nodes/n2/status", patch.clone())
        .await
        .expect(403);
    cluster.post(PODS, pod("a")).await.expect(201);
    node.patch("merge", &format!("{PODS}/a/status"), patch.clone())
        .await
        .expect(403);
    cluster
        .post(&format!("{PODS}/a/binding"), json!({"target": {"name": "n1"}}))
        .await
        .expect(201);
    node.patch("merge", &format!("{PODS}/a/status"), patch)
        .await
        .expect(200);
}

/// A pod that names a secret and a claim.
fn user_of_secret(name: &str) -> Value {
    let mut wanted = pod(name);
    wanted["spec"]["volumes"] = json!([
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}]);
    wanted
}

#[tokio::test]
async fn a_node_reads_what_its_own_pods_need_and_nothing_else() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    let node = |name: &str| cluster.as_user(Identity::new(&format!("system:node:{name}"), &["system:nodes"]));
    let (n1, n2) = (node("n1"), node("n2"));
    let secret = "/api/v1/namespaces/default/secrets/s";
    let object = json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}});
    cluster
        .post("/api/v1/namespaces/default/secrets", object)
        .await
        .expect(201);
    cluster.post(PODS, user_of_secret("a")).await.expect(201);
    n1.get(secret).await.expect(403);
    let target = json!({"target": {"name": "n1"}});
    cluster
        .post(&format!("{PODS}/a/binding"), target)
        .await
        .expect(201);
    n1.get(secret).await.expect(200);
    n1.get("/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Ds")
        .await
        .expect(200);
    n1.get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt")
        .await
        .expect(404);
    n1.get("/api/v1/namespaces/default/persistentvolumeclaims/c")
        .await
        .expect(404);
    n1.get(&format!("{PODS}/a")).await.expect(200);
    n1.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")
        .await
        .expect(200);
    for path in [
        "/api/v1/pods",
        "/api/v1/secrets",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2",
        "/api/v1/pods?fieldSelector=spec.nodeName!%3Dn1",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default/secrets/other",
        "/api/v1/namespaces/kube-system/secrets/s",
        "/api/v1/namespaces/default/configmaps/other",
        "/api/v1/namespaces/default/persistentvolumeclaims/other",
        "/apis/apps/v1/deployments",
    ] {
        n1.get(path).await.expect(403);
    }
    n2.get(secret).await.expect(403);
    n2.get(&format!("{PODS}/a")).await.expect(403);
    let end = json!({"gracePeriodSeconds": 0}).to_string().into_bytes();
    n2.send(Method::DELETE, &format!("{PODS}/a"), &[], end.clone())
        .await
        .expect(403);
    n1.send(Method::DELETE, &format!("{PODS}/a"), &[], end.clone())
        .await
        .expect(200);
    n1.send(Method::DELETE, &format!("{PODS}/a"), &[], end)
        .await
        .expect(404);
    n1.get(secret).await.expect(403);
}

#[tokio::test]
async fn a_node_gets_tokens_for_its_own_pods_only() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    let node = |name: &str| cluster.as_user(Identity::new(&format!("system:node:{name}"), &["system:nodes"]));
    let made = cluster.post(PODS, pod("a")).await.expect(201);
    cluster.post(PODS, pod("b")).await.expect(201);
    let bind = |pod: &str, node: &str| (format!("{PODS}/{pod}/binding"), json!({"target": {"name": node}}));
    for (path, target) in [bind("a", "n1"), bind("b", "n2")] {
        cluster.post(&path, target).await.expect(201);
    }
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let wish = json!({"spec": {"audiences": null, "boundObjectRef":
        {"kind": "Pod", "apiVersion": "v1", "name": "a", "uid": made["metadata"]["uid"]}}});
    node("n1").post(path, wish.clone()).await.expect(201);
    let refused = node("n2").post(path, wish).await.expect(403);
    assert!(
        refused["message"].as_str().unwrap().contains("different node"),
        "{refused}"
    );
    let refused = node("n1")
        .post(path, json!({"spec": {"audiences": null}}))
        .await
        .expect(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("not bound to a pod"),
        "{refused}"
    );
    let other = json!({"metadata": {"name": "other"}});
    cluster
        .post("/api/v1/namespaces/default/serviceaccounts", other)
        .await
        .expect(201);
    let path = "/api/v1/namespaces/default/serviceaccounts/other/token";
    node("n1")
        .post(path, json!({"spec": {"audiences": null}}))
        .await
        .expect(403);
}

#[tokio::test]
async fn a_node_makes_no_other_node() {
    let cluster = Cluster::new().await;
    let node = cluster.as_user(Identity::new("system:node:n1", &["system:nodes"]));
    node.post("/api/v1/nodes", json!({"metadata": {"name": "n2"}}))
        .await
        .expect(403);
    let reserved = json!({"metadata": {"name": "n1", "labels": {"node-restriction.kubernetes.io/x": "y"}}});
    node.post("/api/v1/nodes", reserved).await.expect(403);
    node.post("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await
        .expect(201);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    node.post(leases, json!({"metadata": {"name": "n2"}}))
        .await
        .expect(403);
    node.post(leases, json!({"metadata": {"name": "n1"}}))
        .await
        .expect(201);
}

#[tokio::test]
async fn callers_without_credentials_see_health_and_version_only() {
    let cluster = Cluster::new().await;
    let ask = |path: &'static str| {
        let request = http::Request::get(path)
            .body(control_plane_apiserver::body::full(""))
            .unwrap();
        cluster.server.handle(None, request)
    };
    for path in ["/healthz", "/livez", "/readyz?verbose", "/version"] {
        assert_eq!(ask(path).await.status(), 200, "{path}");
    }
    for path in ["/api", "/metrics", "/api/v1/pods", "/healthzz", "/livez/ping"] {
        assert_eq!(ask(path).await.status(), 403, "{path}");
    }
    let nobody = cluster.as_user(Identity::anonymous());
    let refused = nobody.get("/api").await.expect(403);
    assert_eq!(
        refused["message"],
        "forbidden: User \"system:anonymous\" cannot get path \"/api\""
    );
    let forged = http::Request::get("/version").header("authorization", "Bearer x.y.z");
    let forged = forged.body(control_plane_apiserver::body::full("")).unwrap();
    assert_eq!(cluster.server.handle(None, forged).await.status(), 401);
}

#[tokio::test]
async fn an_eviction_waits_for_its_disruption_budget() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    cluster.post(PODS, pod("a")).await.expect(201);
    let running = json!({"status": {"phase": "Running"}});
    cluster
        .patch("merge", &format!("{PODS}/a/status"), running)
        .await
        .expect(200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    let generation = cluster.post(budgets, budget).await.expect(201)["metadata"]["generation"].clone();
    let path = format!("{PODS}/a/eviction");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let refused = cluster.post(&path, eviction.clone()).await.expect(429);
    assert_eq!(refused["details"]["causes"][0]["reason"], "DisruptionBudget");
    let allow = json!({"status": {"disruptionsAllowed": 1, "currentHealthy": 1, "desiredHealthy": 0,
        "expectedPods": 1, "observedGeneration": generation}});
    cluster
        .patch("merge", &format!("{budgets}/b/status"), allow)
        .await
        .expect(200);
    cluster.post(&path, eviction).await.expect(201);
    cluster.get(&format!("{PODS}/a")).await.expect(404);
}

#[tokio::test]
async fn discovery_is_legacy_or_aggregated_and_cached_by_tag() {
    let cluster = Cluster::new().await;
    let list = cluster.get("/apis/apps/v1").await.expect(200);
    assert!(
        list["resources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["name"] == "deployments/scale")
    );
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let answer = cluster
        .send(Method::GET, "/apis", &[("accept", accept)], Vec::new())
        .await;
    assert_eq!(answer.json()["kind"], "APIGroupDiscoveryList");
    let tag = answer.header("etag").to_owned();
    let headers = [("accept", accept), ("if-none-match", tag.as_str())];
    assert_eq!(
        cluster
            .send(Method::GET, "/apis", &headers, Vec::new())
            .await
            .code,
        304
    );
    assert_eq!(cluster.get("/apis").await.expect(200)["kind"], "APIGroupList");
    cluster.get("/apis/nothing").await.expect(404);
    let index = cluster.get("/openapi/v3").await.expect(200);
    assert!(index["paths"]["apis/apps/v1"]["serverRelativeURL"].is_string());
    cluster.get("/openapi/v3/apis/apps/v1").await.expect(200);
}

#[tokio::test]
async fn events_of_both_groups_are_the_same_objects() {
    let cluster = Cluster::new().await;
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "Tested", "action": "Test", "type": "Normal",
        "note": "hello", "reportingController": "test/x", "reportingInstance": "y",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}});
    cluster
        .post("/apis/events.k8s.io/v1/namespaces/default/events", event)
        .await
        .expect(201);
    let core = cluster
        .get("/api/v1/namespaces/default/events/e")
        .await
        .expect(200);
    assert_eq!(
        (&core["message"], &core["involvedObject"]["name"]),
        (&json!("hello"), &json!("p"))
    );
    let list = cluster
        .get("/apis/events.k8s.io/v1/namespaces/default/events")
        .await
        .expect(200);
    assert_eq!(
        (&list["items"][0]["note"], &list["kind"]),
        (&json!("hello"), &json!("EventList"))
    );
}

#[tokio::test]
async fn limit_ranges_give_defaults_and_bounds() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container",
        "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "100m"}, "min": {"cpu": "50m"}, "max": {"cpu": "500m"}}]}});
    cluster
        .post("/api/v1/namespaces/default/limitranges", range)
        .await
        .expect(201);
    let made = cluster.post(PODS, pod("a")).await.expect(201);
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(
        resources,
        &json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}})
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let note = &made["metadata"]["annotations"]["kubernetes.io/limit-ranger"];
    assert_eq!(
        note,
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let mut greedy = pod("b");
    greedy["spec"]["containers"][0]["resources"] =
        json!({"limits": {"cpu": "2"}, "requests": {"cpu": "100m"}});
    let failed = cluster.post(PODS, greedy).await.expect(403);
    assert_eq!(
        failed["message"],
        "pods \"b\" is forbidden: maximum cpu usage per Container is 500m, but limit is 2"
    );
}

#[tokio::test]
async fn claims_get_the_default_class_and_stay_while_protected() {
    let cluster = Cluster::new().await;
    let class = json!({"metadata": {"name": "fast",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "example.com/x"});
    cluster
        .post("/apis/storage.k8s.io/v1/storageclasses", class)
        .await
        .expect(201);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let made = cluster.post(claims, claim).await.expect(201);
    assert_eq!(made["spec"]["storageClassName"], "fast");
    assert_eq!(
        made["metadata"]["finalizers"],
        json!(["kubernetes.io/pvc-protection"])
    );
}

#[tokio::test]
async fn parts_of_a_running_pod_change_through_their_subresources_only() {
    let cluster = Cluster::new().await;
    cluster.account("default").await;
    let mut wanted = pod("a");
    wanted["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    let first = cluster.post(PODS, wanted).await.expect(201);
    let more = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "150m"}}}]}});
    let path = format!("{PODS}/a");
    let refused = cluster
        .patch("strategic-merge", &path, more.clone())
        .await
        .expect(422);
    assert_eq!(refused["details"]["causes"][0]["reason"], "FieldValueForbidden");
    let resized = cluster
        .patch("strategic-merge", &format!("{path}/resize"), more)
        .await
        .expect(200);
    assert_eq!(
        resized["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "150m"
    );
    assert_eq!(
        resized["spec"]["containers"][0]["image"],
        first["spec"]["containers"][0]["image"]
    );
    assert_eq!(resized["metadata"]["generation"], 2);
    let less = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": null}}}]}});
    let refused = cluster
        .patch("strategic-merge", &format!("{path}/resize"), less)
        .await
        .expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("QOS Class may not change"),
        "{refused}"
    );

    let debugger = |image: &str| json!({"spec": {"ephemeralContainers": [{"name": "d", "image": image}]}});
    let debugged = cluster
        .patch(
            "strategic-merge",
            &format!("{path}/ephemeralcontainers"),
            debugger("i"),
        )
        .await
        .expect(200);
    assert_eq!(debugged["spec"]["ephemeralContainers"][0]["name"], "d");
    let refused = cluster
        .patch(
            "strategic-merge",
            &format!("{path}/ephemeralcontainers"),
            debugger("other"),
        )
        .await
        .expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("may not be changed"),
        "{refused}"
    );
    let again = cluster.get(&path).await.expect(200);
    assert_eq!(again["spec"]["ephemeralContainers"][0]["image"], "i");
}

#[tokio::test]
async fn an_ingress_that_names_no_class_gets_the_default_one() {
    let c = Cluster::new().await;
    let class = |name: &str, default: &str| {
        json!({"metadata": {"name": name, "annotations": {"ingressclass.kubernetes.io/is-default-class": default}},
            "spec": {"controller": "example.com/c"}})
    };
    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    c.post(classes, class("other", "false")).await.expect(201);
    c.post(classes, class("usual", "true")).await.expect(201);
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let plain = json!({"metadata": {"name": "a"}, "spec": {"defaultBackend": backend}});
    let made = c.post(ingresses, plain.clone()).await.expect(201);
    assert_eq!(made["spec"]["ingressClassName"], "usual");
    let mut old = plain;
    old["metadata"] = json!({"name": "b", "annotations": {"kubernetes.io/ingress.class": "x"}});
    let made = c.post(ingresses, old).await.expect(201);
    assert!(made["spec"]["ingressClassName"].is_null());
}
