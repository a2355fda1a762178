//! Query options of list, watch, write and delete requests, as the API concepts document gives them.

use std::str::FromStr;
use std::time::Duration;

use crate::path::pairs;

/// A query parameter that does not mean anything.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    /// The value is of the wrong type.
    #[error("invalid value {value:?} for the query parameter {name:?}")]
    Value {
        /// Which parameter.
        name: String,
        /// What it said.
        value: String,
    },
    /// Two parameters contradict each other.
    #[error("{0}")]
    Combination(&'static str),
}

/// The decoded pairs of a query string; the first of several equal names counts.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a raw query string.
    #[must_use]
    pub fn parse(raw: &str) -> Self {
        Self(pairs(raw).collect())
    }

    /// The value of a parameter; `None` when it is missing.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// All values of a parameter that may be given several times.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// The value, or the empty string.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// A boolean; a bare name means true.
    ///
    /// # Errors
    /// [`OptionError::Value`] for anything Go's `ParseBool` does not take.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, OptionError> {
        match self.get(name) {
            None => Ok(None),
            Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
            Some(other) => Err(OptionError::Value {
                name: name.into(),
                value: other.into(),
            }),
        }
    }

    /// A number; empty counts as missing.
    ///
    /// # Errors
    /// [`OptionError::Value`] when it is none.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, OptionError> {
        match self.get(name).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| OptionError::Value {
                name: name.into(),
                value: text.into(),
            }),
        }
    }
}

/// How `resourceVersion` of a list is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    /// Data at least as new as the version.
    NotOlderThan,
    /// Data of exactly that version.
    Exact,
}

/// Options of list and watch (`ListOptions`).
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Label selector, unparsed.
    pub label_selector: String,
    /// Field selector, unparsed.
    pub field_selector: String,
    /// `resourceVersion`: `None` when unset, which means the newest.
    pub version: Option<u64>,
    /// `resourceVersionMatch`.
    pub version_match: Option<VersionMatch>,
    /// At most this many objects; 0 means all.
    pub limit: usize,
    /// Token of the page before.
    pub continue_token: String,
    /// Watch: send bookmarks.
    pub bookmarks: bool,
    /// Watch: send the present state first.
    pub send_initial_events: Option<bool>,
    /// Watch: end after this time.
    pub timeout: Option<Duration>,
}

impl ListOptions {
    /// Reads and checks the options of a list (`watch` false) or a watch.
    ///
    /// # Errors
    /// [`OptionError`] for values and combinations that upstream refuses, too.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, OptionError> {
        let text = query.text("resourceVersion");
        let options = Self {
            label_selector: query.text("labelSelector"),
            field_selector: query.text("fieldSelector"),
            version: query.number("resourceVersion")?,
            version_match: version_match(query)?,
            limit: query
                .number::<i64>("limit")?
                .map_or(0, |n| usize::try_from(n).unwrap_or(0)),
            continue_token: query.text("continue"),
            bookmarks: query.flag("allowWatchBookmarks")?.unwrap_or(false),
            send_initial_events: query.flag("sendInitialEvents")?,
            timeout: query
                .number("timeoutSeconds")?
                .filter(|s| *s > 0)
                .map(Duration::from_secs),
        };
        if watch {
            options.check_watch()?
        } else {
            options.check_list(&text)?
        }
        Ok(options)
    }

    fn check_list(&self, version: &str) -> Result<(), OptionError> {
        let refuse = |text| Err(OptionError::Combination(text));
        if self.send_initial_events.is_some() {
            return refuse("sendInitialEvents is forbidden for list");
        }
        if self.version_match.is_some() && version.is_empty() {
            return refuse("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if self.version_match.is_some() && !self.continue_token.is_empty() {
            return refuse("resourceVersionMatch is forbidden when continue is provided");
        }
        if self.version_match == Some(VersionMatch::Exact) && version == "0" {
            return refuse("resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"");
        }
        if !self.continue_token.is_empty() && self.version.is_some_and(|v| v > 0) {
            return refuse("specifying resource version is not allowed when using continue");
        }
        Ok(())
    }

    fn check_watch(&self) -> Result<(), OptionError> {
        let refuse = |text| Err(OptionError::Combination(text));
        match (self.send_initial_events, self.version_match) {
            (Some(_), None) => {
                refuse("resourceVersionMatch=NotOlderThan is required when sendInitialEvents is provided")
            }
            (Some(_), Some(VersionMatch::Exact)) => {
                refuse("resourceVersionMatch must be NotOlderThan when sendInitialEvents is provided")
            }
            (None, Some(_)) => {
                refuse("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
            }
            _ => Ok(()),
        }
    }
}

fn version_match(query: &Query) -> Result<Option<VersionMatch>, OptionError> {
    match query.get("resourceVersionMatch") {
        None | Some("") => Ok(None),
        Some("NotOlderThan") => Ok(Some(VersionMatch::NotOlderThan)),
        Some("Exact") => Ok(Some(VersionMatch::Exact)),
        Some(other) => Err(OptionError::Value {
            name: "resourceVersionMatch".into(),
            value: other.into(),
        }),
    }
}

/// What to do with fields the schema does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so in a `Warning` header.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Run everything, store nothing.
    pub dry_run: bool,
    /// Treatment of unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Name of the field manager; `None` when not given.
    pub field_manager: Option<String>,
    /// Apply: take over fields of others.
    pub force: bool,
}

impl WriteOptions {
    /// Reads the options of a write.
    ///
    /// # Errors
    /// [`OptionError::Value`] for unknown values.
    pub fn parse(query: &Query) -> Result<Self, OptionError> {
        Ok(Self {
            dry_run: dry_run(query)?,
            field_validation: match query.get("fieldValidation") {
                None | Some("" | "Warn") => FieldValidation::Warn,
                Some("Ignore") => FieldValidation::Ignore,
                Some("Strict") => FieldValidation::Strict,
                Some(other) => {
                    return Err(OptionError::Value {
                        name: "fieldValidation".into(),
                        value: other.into(),
                    });
                }
            },
            field_manager: query
                .get("fieldManager")
                .filter(|m| !m.is_empty())
                .map(Into::into),
            force: query.flag("force")?.unwrap_or(false),
        })
    }
}

/// Whether `dryRun=All` was asked for.
///
/// # Errors
/// [`OptionError::Value`] for anything but `All`.
pub fn dry_run(query: &Query) -> Result<bool, OptionError> {
    let mut any = false;
    for value in query.all("dryRun") {
        match value {
            "All" => any = true,
            "" => {}
            other => {
                return Err(OptionError::Value {
                    name: "dryRun".into(),
                    value: other.into(),
                });
            }
        }
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(query: &str) -> Result<ListOptions, OptionError> {
        ListOptions::parse(&Query::parse(query), false)
    }

    fn watch(query: &str) -> Result<ListOptions, OptionError> {
        ListOptions::parse(&Query::parse(query), true)
    }

    #[test]
    fn an_unset_resource_version_differs_from_zero() {
        assert_eq!(list("").unwrap().version, None);
        assert_eq!(list("resourceVersion=").unwrap().version, None);
        assert_eq!(list("resourceVersion=0").unwrap().version, Some(0));
        assert!(list("resourceVersion=abc").is_err());
    }

    #[test]
    fn version_match_needs_a_version_and_exact_none_of_zero() {
        assert!(list("resourceVersionMatch=Exact").is_err());
        assert!(list("resourceVersionMatch=Exact&resourceVersion=0").is_err());
        assert!(list("resourceVersionMatch=Exact&resourceVersion=5").is_ok());
        assert!(list("continue=x&resourceVersion=5").is_err());
    }

    #[test]
    fn initial_events_need_not_older_than() {
        assert!(watch("sendInitialEvents=true").is_err());
        assert!(watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan").is_ok());
        assert!(watch("resourceVersionMatch=NotOlderThan&resourceVersion=1").is_err());
    }

    #[test]
    fn dry_run_takes_only_all() {
        assert_eq!(dry_run(&Query::parse("dryRun=All")), Ok(true));
        assert_eq!(dry_run(&Query::parse("")), Ok(false));
        assert!(dry_run(&Query::parse("dryRun=Some")).is_err());
    }
}
