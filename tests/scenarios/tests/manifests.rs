//! Manifests as users write them, and the maps that come of them: `data/<name>.yaml` → `data/<name>.maps`.
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tests_scenarios::{Model, golden, name};

fn manifests() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let entries = fs::read_dir(dir).expect("the folder is part of the repository");
    let mut found: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    found.sort();
    found
}

fn objects(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a manifest is readable");
    text.split("\n---\n")
        .map(|document| {
            serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        })
        .collect()
}

fn model() -> Model {
    let node = agent_services::Node {
        name: "here".into(),
        zone: Some("zone-a".into()),
        ..agent_services::Node::default()
    };
    Model::new(node, &["10.96.0.0/16".to_owned(), "fd00:10:96::/112".to_owned()])
}

#[test]
fn manifests_become_the_maps_that_are_committed() {
    let all = manifests();
    assert!(!all.is_empty(), "no manifest found");
    for path in all {
        let mut model = model();
        for object in objects(&path) {
            model.apply(&object);
        }
        model.sync();
        golden(&path.with_extension("maps"), &model.dump());
    }
}

#[test]
fn manifests_in_any_order_become_the_same_maps_and_none_when_deleted() {
    for path in manifests() {
        let objects = objects(&path);
        let mut model = model();
        for object in objects.iter().rev() {
            model.apply(object);
            model.sync();
        }
        golden(&path.with_extension("maps"), &model.dump());
        for object in &objects {
            model.delete(object["kind"].as_str().expect("a kind"), &name(object));
        }
        model.sync();
        assert_eq!(
            model.maps,
            agent_services::Existing::default(),
            "{}",
            path.display()
        );
    }
}
