//! Label and field selectors, as strings in queries and as `LabelSelector` objects.

use crate::names;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A selector that cannot be understood; the message is what the API answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

/// Something that has labels.
pub trait Labels {
    /// The value of the label `key`.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

/// A JSON object of labels (`metadata.labels`); anything else has none.
impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_object()?.get(key)?.as_str()
    }
}

impl<L: Labels> Labels for Option<L> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref()?.label(key)
    }
}

impl<L: Labels + ?Sized> Labels for &L {
    fn label(&self, key: &str) -> Option<&str> {
        (**self).label(key)
    }
}

/// What a requirement asks of a label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wants {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    wants: Wants,
}

impl Requirement {
    fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let value = labels.label(&self.key);
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.wants {
            Wants::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Wants::NotIn(values) => value.is_none_or(|v| !values.iter().any(|w| w == v)),
            Wants::Exists => value.is_some(),
            Wants::Absent => value.is_none(),
            Wants::Greater(bound) => number().is_some_and(|n| n > *bound),
            Wants::Less(bound) => number().is_some_and(|n| n < *bound),
        }
    }

    fn check(self) -> Result<Self, SelectorError> {
        let problems = names::qualified_name(&self.key);
        if !problems.is_empty() {
            return Err(invalid("key", &self.key, &problems));
        }
        if let Wants::In(values) | Wants::NotIn(values) = &self.wants {
            for value in values {
                let problems = names::label_value(value);
                if !problems.is_empty() {
                    return Err(invalid(&format!("values[0][{}]", self.key), value, &problems));
                }
            }
        }
        Ok(self)
    }
}

fn invalid(field: &str, value: &str, problems: &[String]) -> SelectorError {
    let value = crate::status::quote(value);
    SelectorError(format!(
        "{field}: Invalid value: {value}: {}",
        problems.join("; ")
    ))
}

/// A selector over labels. The empty one matches everything; [`LabelSelector::nothing`] matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches no object: what a null `LabelSelector` means.
    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Parses a selector as `labelSelector` in a query has it: `a=b,c!=d,e in (f,g),h,!i,j>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let tokens = tokens(text);
        let mut parser = Parser { tokens: &tokens };
        let fail = |why: String| SelectorError(format!("unable to parse requirement: {why}"));
        let mut requirements = Vec::new();
        while parser.peek() != &Token::End {
            requirements.push(
                parser
                    .requirement()
                    .and_then(|r| r.check().map_err(|e| e.0))
                    .map_err(fail)?,
            );
            match parser.next() {
                Token::End => break,
                Token::Sign(',') if matches!(parser.peek(), Token::Word(_) | Token::Sign('!')) => {}
                Token::Sign(',') => {
                    return Err(SelectorError(format!(
                        "found '{}', expected: identifier after ','",
                        parser.peek()
                    )));
                }
                other => {
                    return Err(SelectorError(format!(
                        "found '{other}', expected: ',' or 'end of string'"
                    )));
                }
            }
        }
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// Reads a `LabelSelector` object (meta/v1). Null or absent matches nothing, `{}` everything.
    pub fn from_json(object: &Value) -> Result<Self, SelectorError> {
        let Some(fields) = object.as_object() else {
            return Ok(Self::nothing());
        };
        let mut out = Self::from_map(fields.get("matchLabels").unwrap_or(&Value::Null))?;
        for expression in fields
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            out.requirements.push(expression_requirement(expression)?);
        }
        Ok(out)
    }

    /// Reads a plain map of labels (`spec.selector` of Services and ReplicationControllers): all must be equal.
    pub fn from_map(map: &Value) -> Result<Self, SelectorError> {
        let pairs = map.as_object().into_iter().flatten();
        let requirements = pairs
            .map(|(key, value)| {
                let wants = Wants::In(vec![value.as_str().unwrap_or_default().to_owned()]);
                Requirement {
                    key: key.clone(),
                    wants,
                }
                .check()
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether `object` is selected by its `metadata.labels`.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.get("metadata").and_then(|m| m.get("labels"));
        self.matches(&labels)
    }
}

fn expression_requirement(expression: &Value) -> Result<Requirement, SelectorError> {
    let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
    let list = expression
        .get("values")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let values: Vec<String> = list.filter_map(|v| v.as_str().map(str::to_owned)).collect();
    let wants = match text("operator") {
        "In" => Wants::In(values),
        "NotIn" => Wants::NotIn(values),
        "Exists" => Wants::Exists,
        "DoesNotExist" => Wants::Absent,
        other => {
            return Err(SelectorError(format!(
                "{} is not a valid label selector operator",
                crate::status::quote(other)
            )));
        }
    };
    Requirement {
        key: text("key").to_owned(),
        wants,
    }
    .check()
}

impl fmt::Display for LabelSelector {
    /// The selector in query form, as `status.selector` of a scale has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Requirement> = self.requirements.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        for (index, requirement) in sorted.into_iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let sorted = |values: &[String]| {
            let mut values = values.to_vec();
            values.sort();
            values.join(",")
        };
        match &self.wants {
            Wants::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Wants::In(values) => write!(f, "{key} in ({})", sorted(values)),
            Wants::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Wants::NotIn(values) => write!(f, "{key} notin ({})", sorted(values)),
            Wants::Exists => f.write_str(key),
            Wants::Absent => write!(f, "!{key}"),
            Wants::Greater(bound) => write!(f, "{key}>{bound}"),
            Wants::Less(bound) => write!(f, "{key}<{bound}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(char),
    Equal,
    NotEqual,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word) => f.write_str(word),
            Token::Sign(sign) => write!(f, "{sign}"),
            Token::Equal => f.write_str("="),
            Token::NotEqual => f.write_str("!="),
            Token::End => Ok(()),
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let special = |c: char| "=!(),<>".contains(c);
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = if rest.starts_with("==") {
            (Token::Equal, 2)
        } else if rest.starts_with("!=") {
            (Token::NotEqual, 2)
        } else if first == '=' {
            (Token::Equal, 1)
        } else if special(first) {
            (Token::Sign(first), 1)
        } else {
            let end = rest
                .find(|c: char| special(c) || c.is_whitespace())
                .unwrap_or(rest.len());
            (Token::Word(rest[..end].to_owned()), end)
        };
        out.push(token);
        rest = rest[length..].trim_start();
    }
    out.push(Token::End);
    out
}

struct Parser<'a> {
    tokens: &'a [Token],
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.first().unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.tokens = self.tokens.get(1..).unwrap_or_default();
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek() == &Token::Sign('!');
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{other}', expected: identifier")),
        };
        if absent {
            return Ok(Requirement {
                key,
                wants: Wants::Absent,
            });
        }
        if matches!(self.peek(), Token::End | Token::Sign(',')) {
            return Ok(Requirement {
                key,
                wants: Wants::Exists,
            });
        }
        let wants = self.operator()?;
        Ok(Requirement { key, wants })
    }

    fn operator(&mut self) -> Result<Wants, String> {
        match self.next() {
            Token::Equal => Ok(Wants::In(vec![self.value()?])),
            Token::NotEqual => Ok(Wants::NotIn(vec![self.value()?])),
            Token::Sign('>') => Ok(Wants::Greater(self.number()?)),
            Token::Sign('<') => Ok(Wants::Less(self.number()?)),
            Token::Word(word) if word == "in" => Ok(Wants::In(self.values()?)),
            Token::Word(word) if word == "notin" => Ok(Wants::NotIn(self.values()?)),
            other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        }
    }

    /// A single value, which may be empty (`a=`).
    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Sign(',') => Ok(String::new()),
            Token::Word(_) => match self.next() {
                Token::Word(word) => Ok(word),
                other => Err(format!("found '{other}', expected: identifier")),
            },
            other => Err(format!("found '{other}', expected: identifier")),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let text = self.value()?;
        text.parse()
            .map_err(|_| "for 'Gt', 'Lt' operators, the value must be an integer".to_owned())
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Sign('(') => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        let mut out = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) => out.push(self.value()?),
                Token::Sign(',' | ')') => out.push(String::new()),
                other => return Err(format!("found '{other}', expected: ',', ')' or identifier")),
            }
            match self.next() {
                Token::Sign(',') => {}
                Token::Sign(')') => break,
                other => return Err(format!("found '{other}', expected: ',' or ')'")),
            }
        }
        out.dedup();
        Ok(out)
    }
}

/// A selector over fields: `a=b,c!=d`, each field one that the kind publishes as selectable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// Path, such as `spec.nodeName`.
    pub field: String,
    /// The value it is compared with.
    pub value: String,
    /// Whether it must be equal (`=`) or different (`!=`).
    pub equal: bool,
}

impl FieldSelector {
    /// Parses `fieldSelector` of a query. In values, `\` escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let terms: Result<Vec<_>, _> = split_unescaped(text)
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(|part| term(text, part))
            .collect();
        Ok(Self { terms: terms? })
    }

    /// The terms; all must hold.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// Whether there is no term.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must equal, if a term says so (to read one name or namespace only).
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.equal && t.field == field)
            .map(|t| t.value.as_str())
    }

    /// Whether an object with these fields (see `kinds::selectable_fields`) is selected. A field that is not listed
    /// reads as empty.
    pub fn matches(&self, fields: &[(&str, String)]) -> bool {
        self.terms.iter().all(|term| {
            let value = fields
                .iter()
                .find(|(name, _)| *name == term.field)
                .map_or("", |(_, v)| v.as_str());
            (value == term.value) == term.equal
        })
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut out, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn term(selector: &str, part: &str) -> Result<FieldTerm, SelectorError> {
    let cannot = || {
        SelectorError(format!(
            "invalid selector: '{selector}'; can't understand '{part}'"
        ))
    };
    let at = part.find('=').ok_or_else(cannot)?;
    let (left, right) = (&part[..at], &part[at + 1..]);
    let (field, equal) = match left.strip_suffix('!') {
        Some(field) => (field, false),
        None => (left, true),
    };
    let right = if equal {
        right.strip_prefix('=').unwrap_or(right)
    } else {
        right
    };
    let value = unescape(right).ok_or_else(cannot)?;
    Ok(FieldTerm {
        field: field.to_owned(),
        value,
        equal,
    })
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn label_selectors_match_what_they_say() {
        let labels = json!({"a": "b", "n": "5", "empty": ""});
        let yes = [
            "",
            "a=b",
            "a==b",
            "a in (b, c)",
            "a notin (c)",
            "a",
            "!z",
            "z!=q",
            "n>4",
            "n<6,a",
            " a = b , !z",
            "empty=",
            "empty in (,x)",
            "a!=c",
        ];
        let no = [
            "a=c",
            "a!=b",
            "!a",
            "z",
            "z=b",
            "z in (b)",
            "n>5",
            "a>1",
            "a notin (b)",
            "a=b,z",
        ];
        for text in yes {
            assert!(LabelSelector::parse(text).unwrap().matches(&labels), "{text}");
        }
        for text in no {
            assert!(!LabelSelector::parse(text).unwrap().matches(&labels), "{text}");
        }
    }

    #[test]
    fn broken_label_selectors_are_refused() {
        for bad in [
            "=b", "a=b=c", "a in", "a in (b", "a b", ",", "a,", "a>x", "-a=b", "a=b c", "a!", "a=/",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
        let error = LabelSelector::parse("a,").unwrap_err();
        assert_eq!(error.to_string(), "found '', expected: identifier after ','");
    }

    #[test]
    fn selector_objects_match_and_print() {
        let selector = LabelSelector::from_json(&json!({"matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["z", "y"]},
                {"key": "d", "operator": "DoesNotExist"}]}))
        .unwrap();
        assert!(selector.matches(&json!({"a": "1", "b": "2", "c": "y"})));
        assert!(!selector.matches(&json!({"a": "1", "b": "2", "c": "y", "d": ""})));
        assert_eq!(selector.to_string(), "a=1,b=2,c in (y,z),!d");
        assert!(
            !LabelSelector::from_json(&Value::Null)
                .unwrap()
                .matches(&json!({}))
        );
        assert!(LabelSelector::from_json(&json!({})).unwrap().matches(&json!({})));
    }

    #[test]
    fn field_selectors_match_and_escape() {
        let fields = [
            ("spec.nodeName", "n1".to_owned()),
            ("status.phase", "a,b".to_owned()),
        ];
        for (text, wanted) in [
            ("spec.nodeName=n1", true),
            ("spec.nodeName==n1", true),
            ("spec.nodeName!=n1", false),
            ("status.phase=a\\,b", true),
            ("spec.nodeName!=", true),
            ("", true),
            ("spec.nodeName=n1,status.phase=x", false),
        ] {
            assert_eq!(
                FieldSelector::parse(text).unwrap().matches(&fields),
                wanted,
                "{text}"
            );
        }
        assert_eq!(
            FieldSelector::parse("a").unwrap_err().to_string(),
            "invalid selector: 'a'; can't understand 'a'"
        );
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "[a-z!=(),<> \\\\.in]{0,24}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        #[test]
        fn a_printed_selector_parses_to_the_same_meaning(key in "[a-z]{1,3}", values in prop::collection::vec("[a-c]", 1..3)) {
            let selector = LabelSelector::from_json(&json!({"matchExpressions":
                [{"key": key, "operator": "In", "values": values}]})).unwrap();
            let again = LabelSelector::parse(&selector.to_string()).unwrap();
            for value in ["a", "b", "c", "d"] {
                let labels = json!({key.clone(): value});
                prop_assert_eq!(selector.matches(&labels), again.matches(&labels));
            }
        }
    }
}
