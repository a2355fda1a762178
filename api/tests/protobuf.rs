//! Our protobuf against what the published Go types write and read, for every stable kind.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::sync::OnceLock;

use api::proto;
use difference::difference;

mod difference;

struct Fixture {
    name: String,
    pb: Vec<u8>,
    json: Value,
    back: Vec<u8>,
}

/// Read once for all tests.
fn fixtures() -> &'static [Fixture] {
    static ALL: OnceLock<Vec<Fixture>> = OnceLock::new();
    ALL.get_or_init(read_fixtures)
}

fn read_fixtures() -> Vec<Fixture> {
    let packed = include_bytes!("data/go-objects.jsonl.zst");
    let text = String::from_utf8(zstd::decode_all(packed.as_slice()).unwrap()).unwrap();
    text.lines()
        .map(|line| fixture(serde_json::from_str(line).unwrap()))
        .collect()
}

fn fixture(line: Value) -> Fixture {
    let bytes = |key: &str| line[key].as_str().map(|text| STANDARD.decode(text).unwrap());
    let pb = bytes("pb").unwrap();
    Fixture {
        name: line["name"].as_str().unwrap().to_owned(),
        back: bytes("back").unwrap_or_else(|| pb.clone()),
        pb,
        json: line["json"].clone(),
    }
}

fn report(problems: &[String]) {
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

#[test]
fn what_go_writes_reads_here_as_it_reads_there() {
    let problem = |f: &Fixture| match proto::decode_object(&f.pb) {
        Ok(ours) => difference(&ours, &f.json, "").map(|d| format!("{}: {d}", f.name)),
        Err(error) => Some(format!("{}: {error}", f.name)),
    };
    let all = fixtures();
    assert!(all.len() > 300);
    report(&all.iter().filter_map(problem).collect::<Vec<_>>());
}

#[test]
fn what_go_prints_is_written_here_byte_for_byte_as_there() {
    let problem = |f: &Fixture| match proto::encode_object(&f.json) {
        Ok(ours) if ours == f.back => None,
        Ok(ours) => {
            let place = ours.iter().zip(&f.back).position(|(a, b)| a != b);
            let again = proto::decode_object(&ours).unwrap();
            let theirs = proto::decode_object(&f.back).unwrap();
            Some(format!(
                "{}: differs at byte {place:?} of {} (theirs {}): {:?}",
                f.name,
                ours.len(),
                f.back.len(),
                difference(&again, &theirs, "")
            ))
        }
        Err(error) => Some(format!("{}: {error}", f.name)),
    };
    report(&fixtures().iter().filter_map(problem).collect::<Vec<_>>());
}

#[test]
fn keys_come_in_the_order_in_which_go_prints_them() {
    let all = fixtures();
    let deployment = all.iter().find(|f| f.name == "apps/v1 Deployment full").unwrap();
    let ours = proto::decode_object(&deployment.pb).unwrap();
    assert_eq!(ours.to_string(), deployment.json.to_string());
}

#[test]
fn pruning_and_defaults_give_what_go_prints_after_reading() {
    let catalog = api::catalog::catalog();
    let problem = |f: &Fixture| {
        let text = |key: &str| f.json[key].as_str().unwrap_or_default().to_owned();
        let gvk = api::catalog::Gvk::from_api_version(&text("apiVersion"), &text("kind"));
        let schema = catalog.kind_schema(&gvk.group, &gvk.version, &gvk.kind).unwrap();
        let mut ours = f.json.clone();
        api::fields::prune(&schema, &mut ours);
        let unknown = api::fields::check(&schema, &f.json);
        if !unknown.unknown.is_empty() || !unknown.unreadable.is_empty() {
            return Some(format!(
                "{}: {:?} {:?}",
                f.name, unknown.unknown, unknown.unreadable
            ));
        }
        api::defaults::apply(&schema, &mut ours);
        // What Go holds after reading; the defaults of the schema that are more than zero values come on top.
        let mut theirs = proto::decode_object(&f.back).unwrap();
        api::defaults::apply(&schema, &mut theirs);
        difference(&ours, &theirs, "").map(|d| format!("{}: {d}", f.name))
    };
    report(&fixtures().iter().filter_map(problem).collect::<Vec<_>>());
}
