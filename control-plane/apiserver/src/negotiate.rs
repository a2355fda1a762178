//! Content negotiation: which encoding and which shape (object, `Table`, `PartialObjectMetadata`) a client wants.

/// The media type of protobuf bodies.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// The media type of JSON bodies.
pub const JSON: &str = "application/json";
/// The media type of YAML bodies.
pub const YAML: &str = "application/yaml";

/// How an answer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// `k8s\0`-wrapped protobuf.
    Protobuf,
}

impl Encoding {
    /// The `Content-Type` of an answer.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }

    /// The `Content-Type` of a watch.
    #[must_use]
    pub fn stream_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    /// The encoding named by a media type without parameters.
    #[must_use]
    pub fn of(media: &str) -> Option<Self> {
        match media {
            JSON | "*/*" | "application/*" => Some(Self::Json),
            YAML => Some(Self::Yaml),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// Which form of the object is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The object itself.
    Object,
    /// `meta.k8s.io` `Table`.
    Table,
    /// `PartialObjectMetadata`, or its list.
    Partial,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Encoding of the answer.
    pub encoding: Encoding,
    /// Shape of the answer.
    pub shape: Shape,
    /// Version of `meta.k8s.io` for the other shapes.
    pub meta_version: &'static str,
}

impl Output {
    /// Plain JSON.
    pub const JSON: Self = Self {
        encoding: Encoding::Json,
        shape: Shape::Object,
        meta_version: "v1",
    };
}

/// One clause of an `Accept` header.
#[derive(Clone, Debug, PartialEq)]
pub struct Clause {
    /// Media type, lower case, without parameters.
    pub media: String,
    quality: f32,
    parameters: Vec<(String, String)>,
}

impl Clause {
    /// A parameter such as `as`, `g` or `v`.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }
}

/// The clauses of an `Accept` header, the most wanted first; equal ones in the order of the header.
#[must_use]
pub fn clauses(accept: &str) -> Vec<Clause> {
    let mut all: Vec<Clause> = accept
        .split(',')
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .map(clause)
        .collect();
    all.retain(|c| c.quality > 0.0);
    all.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    all
}

fn clause(text: &str) -> Clause {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default().to_ascii_lowercase();
    let parameters: Vec<(String, String)> = parts
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| {
            (
                k.trim().to_ascii_lowercase(),
                v.trim().trim_matches('"').to_owned(),
            )
        })
        .collect();
    let quality = parameters
        .iter()
        .find(|(k, _)| k == "q")
        .and_then(|(_, v)| v.parse().ok())
        .unwrap_or(1.0_f32);
    Clause {
        media,
        quality,
        parameters,
    }
}

/// What to answer with, or `None` when nothing that is offered is acceptable (406). A missing header means JSON.
/// `shapes` tells whether tables and partial objects are offered, as they are for resources.
#[must_use]
pub fn negotiate(accept: &str, shapes: bool) -> Option<Output> {
    if accept.trim().is_empty() {
        return Some(Output::JSON);
    }
    clauses(accept).iter().find_map(|clause| accepted(clause, shapes))
}

fn accepted(clause: &Clause, shapes: bool) -> Option<Output> {
    let encoding = Encoding::of(&clause.media)?;
    let Some(form) = clause.parameter("as") else {
        return Some(Output {
            encoding,
            ..Output::JSON
        });
    };
    let meta_version = match clause.parameter("v")? {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    if !shapes || clause.parameter("g") != Some("meta.k8s.io") {
        return None;
    }
    let shape = match form {
        // A table has no protobuf form.
        "Table" if encoding != Encoding::Protobuf => Shape::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Partial,
        _ => return None,
    };
    Some(Output {
        encoding,
        shape,
        meta_version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_get_gets_a_table_as_json() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
                      application/json";
        let output = negotiate(accept, true).unwrap();
        assert_eq!(
            (output.shape, output.encoding, output.meta_version),
            (Shape::Table, Encoding::Json, "v1")
        );
        assert_eq!(negotiate(accept, false).unwrap(), Output::JSON);
    }

    #[test]
    fn quality_orders_clauses_and_zero_excludes() {
        let output = negotiate("application/json;q=0.5, application/yaml", true).unwrap();
        assert_eq!(output.encoding, Encoding::Yaml);
        assert_eq!(negotiate("application/json;q=0", true), None);
    }

    #[test]
    fn protobuf_first_falls_back_to_json() {
        let accept = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(negotiate(accept, true).unwrap().encoding, Encoding::Protobuf);
        let tables = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(negotiate(tables, true).unwrap(), Output::JSON);
    }

    #[test]
    fn browsers_and_missing_headers_get_json_and_unknown_types_nothing() {
        assert_eq!(negotiate("", true).unwrap(), Output::JSON);
        assert_eq!(negotiate("text/html,*/*;q=0.8", true).unwrap(), Output::JSON);
        assert_eq!(negotiate("text/html", true), None);
    }
}
