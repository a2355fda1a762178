use super::*;

fn document(path: &str) -> Value {
    serde_json::from_slice(&v3(path).unwrap()).unwrap()
}

#[test]
fn a_deployment_is_found_through_its_path_and_its_schema() {
    let apps = document("apis/apps/v1");
    let item = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    let kind = json!({"group": "apps", "kind": "Deployment", "version": "v1"});
    assert_eq!(item["patch"]["x-kubernetes-group-version-kind"], kind);
    let names: Vec<&str> = item["patch"]["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert_eq!(item["patch"]["operationId"], "patchAppsV1NamespacedDeployment");
    let schemas = &apps["components"]["schemas"];
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([kind])
    );
    let strategy = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(
        strategy["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"
    );
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(node: &Value, document: &Value) {
        match node {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                    let target = document.pointer(reference.trim_start_matches('#'));
                    assert!(target.is_some_and(|t| t.is_object()), "{reference}");
                }
                map.values().for_each(|value| walk(value, document));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, document)),
            _ => {}
        }
    }
    let index = v3_index();
    let paths: Vec<&String> = index["paths"].as_object().unwrap().keys().collect();
    assert!(paths.len() > 20);
    for path in paths {
        let document = document(path);
        walk(&document, &document);
    }
    let v2 = serde_json::from_slice(&v2()).unwrap();
    walk(&v2, &v2);
}

#[test]
fn the_same_tables_give_the_same_bytes() {
    assert_eq!(v3("api/v1"), v3("api/v1"));
    assert_ne!(hash("api/v1"), hash("apis/apps/v1"));
    assert_eq!(v3("apis/nothing/v1"), None);
}

#[test]
fn version_2_has_the_same_definitions_and_paths_in_protobuf() {
    use crate::proto::wire::{Fields, Payload};
    let field = |bytes: &'static [u8], wanted: u32| -> Vec<&'static [u8]> {
        let all = Fields(bytes)
            .map(Result::unwrap)
            .filter(|(number, _)| *number == wanted);
        all.map(|(_, payload)| {
            if let Payload::Bytes(b) = payload {
                b
            } else {
                panic!("not a message")
            }
        })
        .collect()
    };
    let names = |map: &'static [u8], number: u32| -> Vec<String> {
        let name = |entry| String::from_utf8(field(entry, 1)[0].to_vec()).unwrap();
        field(map, number).into_iter().map(name).collect()
    };
    let json: Value = serde_json::from_slice(&v2()).unwrap();
    let keys = |name: &str| {
        json[name]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let document: &'static [u8] = v2_protobuf().leak();
    assert_eq!(names(field(document, 8)[0], 2), keys("paths"));
    assert_eq!(names(field(document, 9)[0], 1), keys("definitions"));
}
