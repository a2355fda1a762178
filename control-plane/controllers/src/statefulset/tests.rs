//! A stateful set and its pods, step by step.

use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn world(spec: &Value) -> World {
    let mut world = World::default();
    let mut whole = json!({"serviceName": "svc", "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}}});
    for (name, value) in spec.as_object().unwrap() {
        whole[name] = value.clone();
    }
    world.put::<StatefulSet>(json!({"metadata": {"name": "web", "namespace": "a"}, "spec": whole}));
    world
}

/// Plans until there is nothing to do.
fn settle(world: &mut World) {
    for _ in 0..20 {
        let observed = Observed {
            set: world.get("a", "web").unwrap(),
            pods: world.all(),
            revisions: world.all(),
            claims: world.all(),
        };
        let plan = plan(&observed, Timestamp::from_second(1000).unwrap());
        world.apply(&plan);
        if plan.is_empty() {
            return;
        }
    }
    panic!("does not settle");
}

fn set_ready(world: &mut World, name: &str, ready: &str) {
    world.change::<Pod>("a", name, |pod| {
        pod["status"] = json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:00:00Z"}]});
    });
}

fn all_ready(world: &mut World) {
    for _ in 0..10 {
        let waiting: Vec<String> = world
            .all::<Pod>()
            .iter()
            .filter(|pod| phase(pod).is_empty())
            .map(|pod| pod.metadata.name.clone().unwrap())
            .collect();
        if waiting.is_empty() {
            return;
        }
        waiting.iter().for_each(|name| set_ready(world, name, "True"));
        settle(world);
    }
}

fn images(world: &World) -> Vec<(String, String)> {
    let pods = world.all::<Pod>();
    let all = pods.iter().map(|pod| {
        let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
        (pod.metadata.name.clone().unwrap(), image)
    });
    all.collect()
}

fn names(world: &World) -> Vec<String> {
    images(world).into_iter().map(|(name, _)| name).collect()
}

fn edit(world: &mut World, change: impl FnOnce(&mut Value)) {
    world.change::<StatefulSet>("a", "web", change);
}

fn status(world: &World) -> Value {
    serde_json::to_value(&world.get::<StatefulSet>("a", "web").unwrap().status).unwrap()
}

fn image(world: &mut World, image: &str) {
    edit(world, |set| {
        set["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image)
    });
    settle(world);
}

#[test]
fn pods_come_one_after_the_other_with_names_hosts_and_claims_of_their_own() {
    let claim = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]);
    let mut world = world(&json!({"replicas": 2, "volumeClaimTemplates": claim}));
    settle(&mut world);
    assert_eq!(names(&world), ["web-0"]);
    set_ready(&mut world, "web-0", "False");
    settle(&mut world);
    assert_eq!(names(&world), ["web-0"], "the second waits for the first");
    all_ready(&mut world);
    set_ready(&mut world, "web-0", "True");
    settle(&mut world);
    all_ready(&mut world);
    assert_eq!(names(&world), ["web-0", "web-1"]);
    let pod = world.get::<Pod>("a", "web-1").unwrap();
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(
        (spec.hostname.as_deref(), spec.subdomain.as_deref()),
        (Some("web-1"), Some("svc"))
    );
    let volume = &spec.volumes.as_ref().unwrap()[0];
    assert_eq!(
        volume.persistent_volume_claim.as_ref().unwrap().claim_name,
        "data-web-1"
    );
    assert!(world.get::<PersistentVolumeClaim>("a", "data-web-1").is_some());
    assert_eq!(
        (
            &status(&world)["readyReplicas"],
            &status(&world)["currentReplicas"]
        ),
        (&json!(2), &json!(2))
    );
}

#[test]
fn in_parallel_nobody_waits() {
    let mut world = world(&json!({"podManagementPolicy": "Parallel"}));
    settle(&mut world);
    assert_eq!(names(&world).len(), 3);
    edit(&mut world, |set| set["spec"]["replicas"] = json!(0));
    settle(&mut world);
    assert!(names(&world).is_empty());
}

#[test]
fn scaling_down_takes_the_last_first_and_halts_while_a_pod_is_not_well() {
    let mut world = world(&json!({}));
    settle(&mut world);
    all_ready(&mut world);
    set_ready(&mut world, "web-0", "False");
    edit(&mut world, |set| set["spec"]["replicas"] = json!(1));
    settle(&mut world);
    assert_eq!(names(&world).len(), 3);
    set_ready(&mut world, "web-0", "True");
    settle(&mut world);
    assert_eq!(names(&world), ["web-0"]);
}

#[test]
fn an_update_goes_from_the_last_to_the_first_and_waits_for_each() {
    let mut world = world(&json!({}));
    settle(&mut world);
    all_ready(&mut world);
    let before = status(&world)["currentRevision"].clone();
    image(&mut world, "two");
    assert_eq!(images(&world)[2], ("web-2".to_owned(), "two".to_owned()));
    assert_eq!(images(&world)[1].1, "one");
    assert_ne!(status(&world)["updateRevision"], before);
    all_ready(&mut world);
    assert!(images(&world).iter().all(|(_, image)| image == "two"));
    assert_eq!(
        status(&world)["currentRevision"],
        status(&world)["updateRevision"]
    );
    image(&mut world, "one");
    all_ready(&mut world);
    assert_eq!(
        status(&world)["currentRevision"],
        before,
        "the old template is the old revision"
    );
    assert_eq!(world.all::<ControllerRevision>().len(), 2);
}

#[test]
fn below_the_partition_pods_stay_and_come_back_old() {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
    let mut world = world(&json!({"updateStrategy": strategy}));
    settle(&mut world);
    all_ready(&mut world);
    image(&mut world, "two");
    all_ready(&mut world);
    let expected = [("web-0", "one"), ("web-1", "one"), ("web-2", "two")];
    let expected = expected.map(|(name, image)| (name.to_owned(), image.to_owned()));
    assert_eq!(images(&world), expected);
    world.objects.retain(|object, _| object.key.name != "web-0");
    settle(&mut world);
    all_ready(&mut world);
    assert_eq!(images(&world), expected, "made again from the revision it had");
}

#[test]
fn a_failed_pod_is_made_again() {
    let mut world = world(&json!({"replicas": 1}));
    settle(&mut world);
    let first = world.get::<Pod>("a", "web-0").unwrap().metadata.uid.clone();
    world.change::<Pod>("a", "web-0", |pod| pod["status"] = json!({"phase": "Failed"}));
    settle(&mut world);
    assert_ne!(world.get::<Pod>("a", "web-0").unwrap().metadata.uid, first);
}
