//! `cargo xtask codegen`: turns the published facts of the Kubernetes API into the compact tables that `api` reads.
//!
//! The facts lie compressed in `api/tables/facts`: `kubernetes-api.json.zst` (schemas from the published OpenAPI,
//! discovery, protobuf numbers) and `go-types.json.zst` (what only the published Go types know; made by
//! `facts/gotypes`). The tables, `types.txt` and `resources.txt`, are text, a line per field and per resource, so that
//! a new Kubernetes release is a readable diff. `docs` of the format: `api/tables/README.md`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const TABLES: &str = "api/tables";
const API_FACTS: &str = "api/tables/facts/kubernetes-api.json.zst";
const GO_FACTS: &str = "api/tables/facts/go-types.json.zst";
const TYPE_META: &str = "@io.k8s.apimachinery.pkg.apis.meta.v1.TypeMeta";

#[derive(clap::Args)]
pub struct Args {
    /// Only say whether the committed tables are what the committed facts give
    #[arg(long)]
    check: bool,
    /// Take new facts of the published API from this file first
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    api_facts: Option<PathBuf>,
    /// Take new facts of the Go types from this file first
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    go_types: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    for (from, to) in [(&args.api_facts, API_FACTS), (&args.go_types, GO_FACTS)] {
        if let Some(from) = from {
            pack(from, Path::new(to))?;
        }
    }
    let facts = Facts::read()?;
    facts.check_numbers()?;
    for (name, text) in [
        ("types.txt", types(&facts)?),
        ("resources.txt", resources(&facts)?),
    ] {
        let path = Path::new(TABLES).join(name);
        if !args.check {
            std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        } else if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            bail!(
                "{} is not what the committed facts give: run `cargo xtask codegen`",
                path.display()
            );
        }
        eprintln!("    {} ({} kB)", path.display(), text.len() / 1000);
    }
    Ok(())
}

/// Stores a JSON file compressed, without white space.
fn pack(from: &Path, to: &Path) -> Result<()> {
    let text = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let value: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", from.display()))?;
    let packed = zstd::encode_all(serde_json::to_vec(&value)?.as_slice(), 19)?;
    std::fs::write(to, packed).with_context(|| format!("cannot write {}", to.display()))
}

fn unpack(path: &str) -> Result<Value> {
    let packed = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
    serde_json::from_slice(&zstd::decode_all(packed.as_slice())?)
        .with_context(|| format!("{path} is damaged"))
}

/// One field of a Go type.
#[derive(serde::Deserialize)]
struct GoField {
    #[serde(default)]
    json: String,
    #[serde(default)]
    number: u32,
    r#type: String,
    zero: String,
}

struct Facts {
    api: Value,
    go: BTreeMap<String, Vec<GoField>>,
}

impl Facts {
    fn read() -> Result<Facts> {
        let go = serde_json::from_value(unpack(GO_FACTS)?).context("the Go facts have another shape")?;
        Ok(Facts {
            api: unpack(API_FACTS)?,
            go,
        })
    }

    fn definition(&self, name: &str) -> Option<&Value> {
        self.api["definitions"].get(name)
    }

    /// The two sources must agree on every protobuf number.
    fn check_numbers(&self) -> Result<()> {
        for (name, fields) in &self.go {
            let message = &self.api["protobuf"][proto_name(name)];
            let mut published: Vec<u64> = message
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|f| f["number"].as_u64())
                .collect();
            let mut go: Vec<u64> = fields
                .iter()
                .map(|f| u64::from(f.number))
                .filter(|n| *n > 0)
                .collect();
            published.sort_unstable();
            go.sort_unstable();
            ensure!(
                published == go,
                "{name}: protobuf numbers {go:?} in Go, {published:?} as published"
            );
        }
        Ok(())
    }

    /// The definition that describes the fields of an embedded type that has none of its own.
    fn definition_through_parent(&self, name: &str) -> Option<&Value> {
        let reference = format!("@{name}");
        let embeds = |fields: &[GoField]| fields.iter().any(|f| f.zero == "inline" && f.r#type == reference);
        let mut parents = self
            .go
            .iter()
            .filter(|(_, fields)| embeds(fields))
            .map(|(parent, _)| parent);
        parents.find_map(|parent| {
            self.definition(parent)
                .or_else(|| self.definition_through_parent(parent))
        })
    }
}

fn proto_name(definition: &str) -> String {
    format!("k8s.{}", definition.trim_start_matches("io.k8s."))
        .replace('-', "_")
        .replacen("k8s.", "k8s.io.", 1)
}

fn types(facts: &Facts) -> Result<String> {
    let mut out = String::from("# Made by `cargo xtask codegen`; see README.md. Do not edit.\n");
    for (name, fields) in &facts.go {
        let definition = facts
            .definition(name)
            .or_else(|| facts.definition_through_parent(name));
        write!(out, "{}", short(name))?;
        if let Some(definition) = facts.definition(name) {
            type_attributes(&mut out, definition)?;
        }
        out.push('\n');
        for field in fields {
            match field.r#type.as_str() {
                TYPE_META => out.push_str(" kind - omit string\n apiVersion - omit string\n"),
                _ => field_line(&mut out, field, definition)
                    .with_context(|| format!("{name}.{}", field.json))?,
            }
        }
    }
    Ok(out)
}

fn short(name: &str) -> String {
    name.replace("io.k8s.", "")
}

fn type_attributes(out: &mut String, definition: &Value) -> Result<()> {
    if definition["x-kubernetes-map-type"] == "atomic" {
        out.push_str(" atomic");
    }
    let kinds = definition["x-kubernetes-group-version-kind"]
        .as_array()
        .into_iter()
        .flatten();
    let kinds: Vec<String> = kinds
        .map(|k| {
            format!(
                "{}/{}/{}",
                text(&k["group"]),
                text(&k["version"]),
                text(&k["kind"])
            )
        })
        .collect();
    if !kinds.is_empty() {
        write!(out, " gvk={}", kinds.join(","))?;
    }
    Ok(())
}

fn field_line(out: &mut String, field: &GoField, definition: Option<&Value>) -> Result<()> {
    let number = if field.number == 0 {
        "-".to_owned()
    } else {
        field.number.to_string()
    };
    let name = if field.zero == "inline" { "+" } else { &field.json };
    write!(out, " {name} {number} {} {}", field.zero, short(&field.r#type))?;
    if let Some(definition) = definition {
        let property = &definition["properties"][&field.json];
        field_attributes(out, property)?;
        let required = definition["required"].as_array().into_iter().flatten();
        if required.into_iter().any(|r| *r == field.json) {
            out.push_str(" required");
        }
    }
    out.push('\n');
    Ok(())
}

fn field_attributes(out: &mut String, property: &Value) -> Result<()> {
    let empty = ["", "0", "false"];
    match &property["default"] {
        Value::Null => {}
        Value::String(s) if s.is_empty() => {}
        other if empty.contains(&other.to_string().as_str()) => {}
        other => {
            ensure!(
                !other.to_string().contains(' '),
                "a default with white space needs another format"
            );
            write!(out, " default={other}")?;
        }
    }
    for (attribute, key) in [
        ("list", "x-kubernetes-list-type"),
        ("map", "x-kubernetes-map-type"),
        ("patch", "x-kubernetes-patch-strategy"),
        ("merge", "x-kubernetes-patch-merge-key"),
    ] {
        if let Some(value) = property[key].as_str() {
            write!(out, " {attribute}={value}")?;
        }
    }
    if let Some(keys) = property["x-kubernetes-list-map-keys"].as_array() {
        write!(
            out,
            " keys={}",
            keys.iter().map(text).collect::<Vec<_>>().join(",")
        )?;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Versions that a server offers unless it is told otherwise: the stable ones.
fn is_stable(version: &str) -> bool {
    version
        .strip_prefix('v')
        .is_some_and(|n| n.parse::<u32>().is_ok())
}

fn resources(facts: &Facts) -> Result<String> {
    let mut out = String::from("# Made by `cargo xtask codegen`; see README.md. Do not edit.\n");
    core_resources(&mut out, &facts.api["discovery"]["core"])?;
    for group in facts.api["discovery"]["aggregated"]["items"]
        .as_array()
        .context("no groups")?
    {
        let name = text(&group["metadata"]["name"]);
        let versions = group["versions"].as_array().into_iter().flatten();
        for version in versions.filter(|v| is_stable(text(&v["version"]))) {
            writeln!(out, "group {name} {}", text(&version["version"]))?;
            for resource in version["resources"].as_array().into_iter().flatten() {
                group_resource(&mut out, resource)?;
            }
        }
    }
    Ok(out)
}

fn words(value: &Value) -> String {
    let list: Vec<&str> = value.as_array().into_iter().flatten().map(text).collect();
    if list.is_empty() {
        "-".to_owned()
    } else {
        list.join(",")
    }
}

/// The core group is known by the older discovery document, which lists subresources beside resources.
fn core_resources(out: &mut String, list: &Value) -> Result<()> {
    writeln!(out, "group - v1")?;
    let resources: Vec<&Value> = list["resources"]
        .as_array()
        .context("no core resources")?
        .iter()
        .collect();
    for resource in resources.iter().filter(|r| !text(&r["name"]).contains('/')) {
        let name = text(&resource["name"]);
        let scope = if resource["namespaced"] == true {
            "namespaced"
        } else {
            "cluster"
        };
        resource_line(
            out,
            resource,
            name,
            text(&resource["singularName"]),
            text(&resource["kind"]),
            scope,
        )?;
        for sub in &resources {
            let Some(part) = text(&sub["name"])
                .strip_prefix(name)
                .and_then(|s| s.strip_prefix('/'))
            else {
                continue;
            };
            subresource_line(out, part, sub, &sub["verbs"])?;
        }
    }
    Ok(())
}

fn group_resource(out: &mut String, resource: &Value) -> Result<()> {
    let scope = text(&resource["scope"]).to_lowercase();
    let kind = text(&resource["responseKind"]["kind"]);
    resource_line(
        out,
        resource,
        text(&resource["resource"]),
        text(&resource["singularResource"]),
        kind,
        &scope,
    )?;
    for sub in resource["subresources"].as_array().into_iter().flatten() {
        subresource_line(
            out,
            text(&sub["subresource"]),
            &sub["responseKind"],
            &sub["verbs"],
        )?;
    }
    Ok(())
}

fn resource_line(
    out: &mut String,
    facts: &Value,
    plural: &str,
    singular: &str,
    kind: &str,
    scope: &str,
) -> Result<()> {
    let (shorts, categories) = (words(&facts["shortNames"]), words(&facts["categories"]));
    writeln!(
        out,
        " {plural} {singular} {kind} {scope} {shorts} {categories} {}",
        words(&facts["verbs"])
    )?;
    Ok(())
}

fn subresource_line(out: &mut String, name: &str, kind: &Value, verbs: &Value) -> Result<()> {
    let mut full = text(&kind["kind"]).to_owned();
    if let Some(version) = kind["version"].as_str().filter(|v| !v.is_empty()) {
        full = format!("{}/{version}/{full}", text(&kind["group"]));
    }
    writeln!(out, "  {name} {full} {}", words(verbs))?;
    Ok(())
}
